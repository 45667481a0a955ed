"""A plain PyTorch data set of RefCOCO's original files, which benchmarks/feed.py compares with ours.

It follows the same recipe the way such loaders are usually written: Pillow reads the JPEG file, pycocotools rasterises
the polygon, OpenCV resizes, Pillow changes colours, PyTorch normalises, and every sentence is tokenised on the fly.
"""

import itertools
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance
from pycocotools import mask as coco_mask
from transformers import BertTokenizerFast

ENHANCERS = ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color


class PlainDataset(torch.utils.data.Dataset):
  """Yields (image f32 [3, S, S], mask u8 [S, S], token ids, token mask) per object, or per expression in evaluation."""

  def __init__(
    self,
    root: Path,
    split: str,
    vocabulary: dict[str, int],
    size: int,
    tokens: int,
    mean: tuple,
    std: tuple,
    train: bool,
  ):
    folder = root / 'annotations' / 'refcoco'
    refs = pickle.loads((folder / 'refs(unc).p').read_bytes())  # safe: just written by photographs.py
    annotations = json.loads((folder / 'instances.json').read_text())['annotations']
    self.polygons = {one['id']: one['segmentation'] for one in annotations}
    self.refs = [ref for ref in refs if ref['split'] == split]
    self.pairs = list(
      itertools.chain.from_iterable([(ref, sentence['sent']) for sentence in ref['sentences']] for ref in self.refs)
    )
    self.pictures, self.size, self.tokens, self.train = root / 'train2014', size, tokens, train
    self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    self.tokenizer = BertTokenizerFast(vocab=vocabulary, do_lower_case=True)

  def __len__(self) -> int:
    return len(self.refs if self.train else self.pairs)

  def __getitem__(self, index: int) -> tuple[torch.Tensor, ...]:
    if self.train:
      return self.drawn(index, np.random.default_rng(torch.randint(2**31, ()).item()))
    ref, text = self.pairs[index]
    image, mask = self.read(ref)
    return self.finish(*self.resized(image, mask, self.size), text)

  def drawn(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, ...]:
    """Returns object `index` with the release's augmentation, sampled with `rng`."""
    ref = self.refs[index]
    text = ref['sentences'][rng.integers(len(ref['sentences']))]['sent']
    image, mask = self.resized(*self.read(ref), self.size - 32 * int(rng.integers(7)))
    if rng.random() < 0.8:
      picture = Image.fromarray(image)
      for step in rng.permutation(3):
        picture = ENHANCERS[step](picture).enhance(rng.uniform(0.6, 1.4))
      image = np.array(picture)
    if rng.random() < 0.5:
      image, mask = cv2.flip(image, 1), cv2.flip(mask, 1)
      text = text.replace('left', '*').replace('right', 'left').replace('*', 'right')
    return self.finish(image, mask, text)

  def read(self, ref: dict) -> tuple[np.ndarray, np.ndarray]:
    """Returns image uint8 [h, w, 3] and mask uint8 [h, w] of a ref."""
    image = np.asarray(Image.open(self.pictures / ref['file_name']).convert('RGB'))
    runs = coco_mask.frPyObjects(self.polygons[ref['ann_id']], *image.shape[:2])
    return image, coco_mask.decode(coco_mask.merge(runs))

  def resized(self, image: np.ndarray, mask: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Resizes both so that the longer side is `side`."""
    height, width = (round(length * side / max(mask.shape)) for length in mask.shape)
    return cv2.resize(image, (width, height)), cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)

  def finish(self, image: np.ndarray, mask: np.ndarray, text: str) -> tuple[torch.Tensor, ...]:
    """Normalises, centres in the square, tokenises, and converts to tensors."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float().div(255)
    pixels = pixels.sub(self.mean).div(self.std)
    top, left = (round((self.size - length) / 2 - 0.1) for length in mask.shape)
    margins = left, self.size - left - mask.shape[1], top, self.size - top - mask.shape[0]
    tokens = self.tokenizer(text, padding='max_length', truncation=True, max_length=self.tokens)
    return (
      torch.nn.functional.pad(pixels, margins),
      torch.nn.functional.pad(torch.from_numpy(mask), margins),
      torch.tensor(tokens['input_ids']),
      torch.tensor(tokens['attention_mask']),
    )


def batches(dataset: PlainDataset, batch_size: int, workers: int) -> torch.utils.data.DataLoader:
  """Returns the batches of one epoch, shuffled for training."""
  return torch.utils.data.DataLoader(
    dataset, batch_size, shuffle=dataset.train, num_workers=workers, persistent_workers=False
  )
