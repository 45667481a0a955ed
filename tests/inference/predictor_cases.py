"""A small SAM, prompts and pictures that the tests of SamPredictor share."""

from types import SimpleNamespace

import numpy as np
from PIL import Image

from tests.small_models import SAM

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'red', 'blue', 'circle', 'square', 'large', 'small']

# Points and boxes relative to the image's width and height; a mask is the seed of random logits.
PROMPTS = {
  'nothing': {},
  'a positive point': dict(points=[[0.3, 0.6]], labels=[1]),
  'a negative point': dict(points=[[0.7, 0.2]], labels=[0]),
  'mixed points': dict(points=[[0.3, 0.6], [0.71, 0.23], [0.5, 0.5]], labels=[1, 0, 1]),
  'six points': dict(points=[[0.1 * i, 0.9 - 0.1 * i] for i in range(6)], labels=[1, 1, 0, 0, 1, 0]),
  'points outside': dict(points=[[-0.3, 0.5], [1.2, 1.4]], labels=[1, 0]),
  'a box': dict(box=[0.2, 0.1, 0.8, 0.65]),
  'points with a box': dict(points=[[0.4, 0.4], [0.9, 0.9]], labels=[1, 0], box=[0.2, 0.1, 0.8, 0.65]),
  'a mask': dict(mask=5),
  'a mask with points': dict(mask=6, points=[[0.5, 0.2]], labels=[0]),
  'everything': dict(mask=7, points=[[0.4, 0.4]], labels=[1], box=[0.1, 0.2, 0.7, 0.9]),
}


def picture(size, seed=0):
  """A random image, uint8 [h, w, 3], of soft blobs and grain."""
  rng = np.random.default_rng(seed)
  blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
  return np.clip(np.asarray(blobs) + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)


def in_pixels(prompt, size):
  """Converts one of PROMPTS to pixels of an image of `size`."""
  prompt = {name: np.asarray(value) for name, value in prompt.items()}
  if 'points' in prompt:
    prompt['points'] = prompt['points'] * size[::-1]
  if 'box' in prompt:
    prompt['box'] = prompt['box'] * np.tile(size[::-1], 2)
  if 'mask' in prompt:
    rng = np.random.default_rng(int(prompt['mask']))
    prompt['mask'] = 4 * rng.normal(size=(4 * SAM.grid, 4 * SAM.grid)).astype(np.float32)
  return prompt


def ask(predictor, *, points=None, labels=None, box=None, mask=None, text=None, multimask=False):
  """Runs a predictor; returns masks, logits, iou and low_res_logits by name."""
  prompt = dict(point_coords=points, point_labels=labels, box=box, mask_input=mask, multimask_output=multimask)
  logits, iou, low_res_logits = predictor.predict(**prompt, return_logits=True, text=text)
  masks, *_ = predictor.predict(**prompt, text=text)
  return SimpleNamespace(masks=masks, logits=logits, iou=iou, low_res_logits=low_res_logits)


def relative_error(ours, theirs):
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()
