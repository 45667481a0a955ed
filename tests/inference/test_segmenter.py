"""Segmenter returns masks in the right place, at the image's own size, for all kinds of input.

Most tests use a model with known answers: it marks the pixels of the colours that the text names.
"""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.protocols import standard_mask
from ditsam_jax.geometry.letterbox import Letterbox
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.config import sam, tiny
from ditsam_jax.tokenization import Tokenizer

COLOURS = {'red': (255, 0, 0), 'green': (0, 255, 0), 'blue': (0, 0, 255)}
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *COLOURS, 'the', 'square']
# With this patch size, low-resolution logits have the image's resolution.
CONFIG = dataclasses.replace(
  tiny(),
  image_encoder=dataclasses.replace(tiny().image_encoder, patch_size=4),
  image_size=64,
  max_text_tokens=6,
  mask_threshold=0.35,
)


class Output(NamedTuple):
  logits: jax.Array
  low_res_logits: jax.Array
  iou: jax.Array


class Reader(nnx.Module):
  """Encodes token ids as one-hot colours and the token mask: [B, T, 4]."""

  def __call__(self, token_ids, token_mask):
    named = [token_ids == WORDS.index(colour) for colour in COLOURS]
    return jnp.stack([*named, token_mask > 0], -1).astype(jnp.float32)


class Eye(nnx.Module):
  """Computes how much of the named colours each pixel has, in patches: [B, 16, 16, 16]."""

  def __init__(self, traced_shapes):
    self.gain = nnx.Param(jnp.asarray(20.0))
    self.on_trace = traced_shapes.append

  def __call__(self, images, text):
    self.on_trace(images.shape)
    pixels = images * jnp.asarray(CONFIG.pixel_std) + jnp.asarray(CONFIG.pixel_mean)
    shown = self.gain[...] * (jnp.einsum('bhwc,bc->bhw', pixels, text[..., :3].max(1)) - 0.5)
    return shown.reshape(-1, 16, 4, 16, 4).swapaxes(2, 3).reshape(-1, 16, 16, 16)


class ColourModel(nnx.Module):
  """Logits are 10 on pixels of a named colour and -10 elsewhere; the "IoU" is the number of tokens."""

  def __init__(self, traced_shapes):
    self.config = CONFIG
    self.text_encoder = Reader()
    self.image_encoder = Eye(traced_shapes)

  def decode(self, embedding, sparse, masks, image_size, multimask, text, sparse_mask):
    logits = embedding.reshape(-1, 16, 16, 4, 4).swapaxes(2, 3).reshape(-1, 64, 64)
    return Output(logits, logits, text[..., 3].sum(-1))


@pytest.fixture
def traced_shapes():
  return []


@pytest.fixture
def tokenizer(tmp_path):
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text('\n'.join(WORDS) + '\n')
  return Tokenizer(vocabulary, CONFIG.max_text_tokens)


@pytest.fixture
def segmenter(tokenizer, traced_shapes):
  return Segmenter.from_model(ColourModel(traced_shapes), tokenizer, batch_size=4)


def scene(height, width, **boxes):
  """Draws boxes (top, bottom, left, right, relative to the sides) on black; returns the image and their masks."""
  image, masks = np.zeros((height, width, 3), np.uint8), {}
  for colour, (top, bottom, left, right) in boxes.items():
    mask = np.zeros((height, width), bool)
    mask[round(top * height) : round(bottom * height), round(left * width) : round(right * width)] = True
    image[mask] = COLOURS[colour]
    masks[colour] = mask
  return image, masks


def two_boxes(height, width):
  return scene(height, width, red=(0.1, 0.6, 0.1, 0.5), blue=(0.3, 0.9, 0.6, 0.9))


def iou(a, b):
  return (a & b).sum() / (a | b).sum()


def test_masks_are_exact_at_the_models_image_size(segmenter):
  image, masks = two_boxes(64, 64)
  result = segmenter(image, 'the red square')
  assert result.mask.dtype == bool and (result.mask == masks['red']).all()
  assert (segmenter(image, 'blue').mask == masks['blue']).all()
  assert result.area == masks['red'].sum() and result.text == 'the red square' and result.cut == ''
  assert result.iou == 5  # three words, [CLS] and [SEP]


@pytest.mark.parametrize('size', [(48, 64), (64, 48), (63, 64), (300, 200), (150, 500), (30, 21), (61, 233)])
def test_masks_have_the_position_and_size_of_the_object(segmenter, size):
  image, masks = two_boxes(*size)
  for colour in ('red', 'blue'):
    mask = segmenter(image, f'the {colour} square').mask
    assert mask.shape == size
    # The model's square is 64 wide, so borders are accurate to about one of its pixels.
    assert iou(mask, masks[colour]) > 1 - 8 * max(1, max(size) / 64) / np.sqrt(masks[colour].sum())
    centre = [np.mean(np.nonzero(m), axis=1) for m in (mask, masks[colour])]
    assert np.abs(centre[0] - centre[1]).max() < 0.5 * max(1, max(size) / 64)


@pytest.mark.parametrize('size', [(1, 1), (1, 64), (1, 500), (700, 1), (2, 3000)])
def test_thin_and_tiny_images(segmenter, size):
  red = np.broadcast_to(np.uint8([255, 0, 0]), (*size, 3))
  result = segmenter(red, 'red')
  assert result.mask.shape == size and result.mask.all()
  assert segmenter(red, 'blue').area == 0


def test_probability_and_mask_agree_at_the_models_threshold(segmenter):
  ramp = np.zeros((64, 64, 3), np.uint8)
  ramp[..., 0] = np.arange(64) * 4
  result = segmenter(ramp, 'red')
  sigmoid = 1 / (1 + np.exp(-20 * (np.arange(64) * 4 / 255 - 0.5)))
  np.testing.assert_allclose(result.probability[0], sigmoid, atol=1e-4)
  assert ((result.probability > 0.35) == result.mask).all()
  assert (result.mask[0] == (sigmoid > 0.35)).all()


def test_masks_equal_those_of_the_standard_protocol(segmenter):
  image = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
  seen = cv2.resize(image, (64, 26), interpolation=cv2.INTER_LINEAR) / np.float32(255)
  square = np.full((64, 64), -3.0, np.float32)
  square[19:45] = 20 * (seen[..., 1] - 0.5)  # 26 of 64 rows, 19 above
  expected = standard_mask(square, Letterbox(19, 0, 26, 64), (40, 100), 0.35)
  assert (segmenter(image, 'green').mask == expected).all()


def test_batches_equal_single_images_in_order(segmenter):
  sizes = [(64, 64), (20, 90), (70, 33), (64, 10), (5, 5), (128, 128)]
  pairs = [(two_boxes(*size)[0], text) for size in sizes for text in ('red', 'the blue square')][:11]
  batched = segmenter.many(pairs)
  assert [result.text for result in batched] == [text for _, text in pairs]
  for (image, text), result in zip(pairs, batched):
    single = segmenter(image, text)
    assert (single.mask == result.mask).all() and (single.image == image).all() and single.iou == result.iou
  streamed = segmenter.stream(iter(pairs))
  assert all((a.mask == b.mask).all() for a, b in zip(streamed, batched, strict=True))


def test_one_compilation_for_single_images_and_one_for_batches(segmenter, traced_shapes):
  for size in [(64, 64), (20, 90), (70, 33)]:
    segmenter(two_boxes(*size)[0], 'red')
  for count in (2, 3, 4, 7, 1):
    segmenter.many([(two_boxes(10 + count, 30)[0], 'red')] * count)
  assert traced_shapes == [(1, 64, 64, 3), (4, 64, 64, 3)]


def test_streams_read_only_a_few_batches_ahead(segmenter):
  asked = []
  image = two_boxes(8, 8)[0]
  stream = segmenter.stream((asked.append(index) or image, 'red') for index in range(100))
  assert not asked
  for taken in range(20):
    next(stream)
    assert taken + 8 <= len(asked) <= taken + 20  # in batches of 4
  stream.close()
  assert len(asked) <= 40


def test_errors_are_raised_in_order(segmenter, tmp_path):
  image = two_boxes(8, 8)[0]
  stream = segmenter.stream([(image, 'red'), (image, 'blue'), (tmp_path / 'missing.png', 'red')])
  assert [next(stream).text for _ in range(2)] == ['red', 'blue']
  with pytest.raises(UserError, match='missing.png'):
    next(stream)


def test_lists_of_images_and_texts(segmenter):
  image, masks = two_boxes(64, 64)
  other, other_masks = scene(64, 64, red=(0.5, 1, 0.5, 1))
  red, blue = segmenter(image, ['red', 'blue'])
  assert (red.mask == masks['red']).all() and (blue.mask == masks['blue']).all()
  first, second = segmenter([image, other], 'red')
  assert (first.mask == masks['red']).all() and (second.mask == other_masks['red']).all()
  first, second = segmenter([image, other], ['blue', 'red'])
  assert (first.mask == masks['blue']).all() and (second.mask == other_masks['red']).all()
  first, second = segmenter([image, other], ['red'])
  assert (first.mask == masks['red']).all() and (second.mask == other_masks['red']).all()
  first, second = segmenter([image], ['blue', 'red'])
  assert (first.mask == masks['blue']).all() and (second.mask == masks['red']).all()
  assert len(segmenter([image], 'red')) == 1 and segmenter([], 'red') == [] and segmenter.many([]) == []
  with pytest.raises(UserError, match='2 images with 3 prompts'):
    segmenter([image, other], ['red'] * 3)


def test_files_and_pil_images(segmenter, tmp_path):
  image, masks = two_boxes(64, 64)
  Image.fromarray(image).save(tmp_path / 'scene.png')
  for source in (tmp_path / 'scene.png', str(tmp_path / 'scene.png'), Image.fromarray(image)):
    assert (segmenter(source, 'red').mask == masks['red']).all()
  with pytest.raises(UserError, match='missing.png'):
    segmenter(tmp_path / 'missing.png', 'red')


@pytest.mark.parametrize('text', ['', '  \n', '\u200b', [None], 3, b'red', 'red \udcff', 'red ' * 2501])
def test_invalid_texts_are_refused(segmenter, text):
  with pytest.raises(UserError, match='expected words|10,004 bytes; expected at most 10,000') as error:
    segmenter(np.zeros((4, 4, 3), np.uint8), text)
  assert len(str(error.value)) < 200


def test_empty_prompts_are_refused(segmenter):
  for asked in (None, Prompt(multimask=True), [Prompt()]):
    with pytest.raises(UserError, match='an empty prompt: expected a text, points, a box or a mask'):
      segmenter(np.zeros((4, 4, 3), np.uint8), asked)


def test_unknown_words_are_reported(segmenter):
  result = segmenter(two_boxes(8, 8)[0], 'the Mauve red Zebra')
  assert result.unknown == ('Mauve', 'Zebra') and result.cut == ''
  assert "unknown 'Mauve', 'Zebra'" in repr(result) and len(repr(result)) < 300


def test_words_beyond_the_token_limit_are_reported(segmenter):
  # Six tokens hold four words between [CLS] and [SEP].
  result = segmenter(two_boxes(8, 8)[0], 'the red square the blue square')
  assert result.cut == 'blue square' and result.iou == 6


def test_overlay_keeps_the_size_and_changes_object_and_background(segmenter):
  image = np.full((50, 70, 3), 128, np.uint8)
  image[10:40, 10:60] = COLOURS['green']
  picture = segmenter(image, 'green').overlay()
  assert picture.size == (70, 50) and picture.mode == 'RGB'
  pixels = np.asarray(picture)
  assert (pixels[25, 35] != image[25, 35]).any() and (pixels[2, 2] != image[2, 2]).any()


def test_threads_can_share_a_segmenter(segmenter):
  scenes = [two_boxes(20 + index, 50) for index in range(24)]
  with ThreadPoolExecutor(6) as pool:
    masks = list(pool.map(lambda scene: segmenter(scene[0], 'red').mask, scenes))
  for (image, _), mask in zip(scenes, masks):
    assert (mask == segmenter(image, 'red').mask).all()


def test_invalid_arguments_of_segmenter(tmp_path, tokenizer, traced_shapes):
  for size in (0, -1, 2.5, '4'):
    with pytest.raises(UserError, match='batch size'):
      Segmenter.from_model(ColourModel(traced_shapes), tokenizer, batch_size=size)
  with pytest.raises(UserError, match='nowhere'):
    Segmenter(tmp_path / 'nowhere')
  with pytest.raises(UserError, match="dtype 'float12'.*auto, float32, bfloat16"):
    Segmenter.from_model(ColourModel(traced_shapes), tokenizer, dtype='float12')


def test_a_tokenizer_of_another_model_is_refused(tokenizer, traced_shapes, tmp_path):
  """Ids without an embedding would be read as the last word, and another number of tokens as other text."""
  vocabulary = tmp_path / 'large.txt'
  vocabulary.write_text('\n'.join([*WORDS, *(f'word{i}' for i in range(CONFIG.text_encoder.vocab_size))]) + '\n')
  for other, message in (
    (Tokenizer(vocabulary, CONFIG.max_text_tokens), 'large.txt has .* word pieces, the text encoder 128'),
    (Tokenizer(tokenizer.vocabulary_file, 5), 'max_tokens 5: the model reads 6'),
  ):
    with pytest.raises(UserError, match=message):
      Segmenter.from_model(ColourModel(traced_shapes), other)


def test_text_needs_a_tokenizer_and_a_text_encoder(traced_shapes):
  image = np.zeros((4, 4, 3), np.uint8)
  with pytest.raises(UserError, match="'red': there is no tokenizer; pass one to from_model"):
    Segmenter.from_model(ColourModel(traced_shapes))(image, 'red')
  mute = ColourModel(traced_shapes)
  mute.config, mute.text_encoder = sam(tiny()), None
  with pytest.raises(UserError, match="'red': this model has no text encoder"):
    Segmenter.from_model(mute)(image, 'red')
