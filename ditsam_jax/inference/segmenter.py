"""Prediction: a picture and a sentence in, the mask of what the sentence names out."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from PIL import Image

from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.pictures import overlay
from ditsam_jax.geometry.letterbox import Letterbox, letterbox, logit, own_size_logits
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.image_files import read_image
from ditsam_jax.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
  """What a sentence names in an image, at the image's own size.

  Attributes:
    text: the sentence.
    cut: the end of the sentence that the model did not read, for want of tokens; '' normally.
    iou: the model's own estimate of the mask's IoU; trained towards 0..1, not bound to it.
    image: uint8 [h, w, 3].
    mask: bool [h, w].
    logits: f32 [h, w]; the mask is where they exceed the model's threshold.
  """

  text: str
  cut: str
  iou: float
  image: np.ndarray = dataclasses.field(repr=False)
  mask: np.ndarray = dataclasses.field(repr=False)
  logits: np.ndarray = dataclasses.field(repr=False)

  @property
  def probability(self) -> np.ndarray:
    """The probability that a pixel belongs to the object, f32 [h, w]."""
    return 0.5 + 0.5 * np.tanh(0.5 * self.logits)  # the sigmoid, without overflow

  @property
  def area(self) -> int:
    """The mask's size in pixels."""
    return int(np.count_nonzero(self.mask))

  def overlay(self) -> Image.Image:
    """The image with the object tinted and outlined and the rest dimmed."""
    return Image.fromarray(overlay(self.image, self.mask))


@dataclasses.dataclass(frozen=True)
class _Picture:
  pixels: np.ndarray  # uint8 [h, w, 3]
  square: np.ndarray  # f32 [S, S, 3], what the model sees
  box: Letterbox  # where the image lies in it


class Segmenter:
  """Segments what a sentence names.

      segmenter = Segmenter('shapes')
      result = segmenter('scene.png', 'the red circle')
      result.overlay().save('circle.png')

  The model is compiled for one image and for `batch_size` images, each at its first use, whatever the sizes
  of the images: they are letterboxed to the model's square here, and masks brought back to their own sizes.
  """

  def __init__(self, checkpoint: str | os.PathLike = 'shapes', *, batch_size: int = 8) -> None:
    """Loads a model.

    Args:
      checkpoint: the folder of a saved model, or the name of one that comes with the package.
      batch_size: how many images `many` and `stream` give the model at once.

    Raises:
      UserError: there is no model there, or `batch_size` is not a positive whole number.
    """
    _check_batch_size(batch_size)
    model = saved_model.load(checkpoint)
    tokenizer = Tokenizer(saved_model.vocabulary_file(checkpoint), model.config.max_text_tokens)
    self._set_up(model, tokenizer, batch_size)

  @classmethod
  def from_model(cls, model: DitSam, tokenizer: Tokenizer, *, batch_size: int = 8) -> 'Segmenter':
    """Wraps a model in memory, in eval mode, such as one just trained."""
    _check_batch_size(batch_size)
    segmenter = cls.__new__(cls)
    segmenter._set_up(model, tokenizer, batch_size)
    return segmenter

  def _set_up(self, model: DitSam, tokenizer: Tokenizer, batch_size: int) -> None:
    if model.config.text_encoder is None:
      raise UserError('this model has no text encoder: expected one trained with sentences; choose another')
    self.config = model.config
    self.tokenizer = tokenizer
    self.batch_size = batch_size
    self._threshold = logit(model.config.mask_threshold)
    self._forward = _compiled_forward(model)

  def __call__(self, image: Any, text: str | list[str]) -> Segmentation | list[Segmentation]:
    """Segments one image, or several.

    Args:
      image: whatever `image_files.read_image` takes, or a list of those.
      text: a sentence, or a list of those. Two lists are taken in pairs, a single item with all of a list.

    Returns:
      A Segmentation; a list of them where a list was given.

    Raises:
      UserError: an image cannot be read, a text says nothing, or two lists differ in length.
    """
    if not _is_list(image) and not _is_list(text):
      return self.many([(image, text)])[0]
    if _is_list(image) and _is_list(text) and len(image) != len(text):
      raise UserError(f'{len(image)} images with {len(text)} texts: expected as many, or one of either')
    images = image if _is_list(image) else itertools.repeat(image)
    texts = text if _is_list(text) else itertools.repeat(text)
    return self.many(zip(images, texts))

  def many(self, pairs: Iterable[tuple[Any, str]]) -> list[Segmentation]:
    """Segments (image, text) pairs in batches; see `__call__`."""
    pairs = list(pairs)
    return list(self._stream(pairs, 1 if len(pairs) == 1 else self.batch_size))

  def stream(self, pairs: Iterable[tuple[Any, str]]) -> Iterator[Segmentation]:
    """`many` for more pairs than fit in memory: takes a batch of pairs, yields its results, goes on."""
    return self._stream(pairs, self.batch_size)

  def _stream(self, pairs: Iterable[tuple[Any, str]], batch_size: int) -> Iterator[Segmentation]:
    prepared = (self._prepared(image, text) for image, text in pairs)
    while batch := list(itertools.islice(prepared, batch_size)):
      yield from self._segment(batch, batch_size)

  def _prepared(self, image: Any, text: str) -> tuple[_Picture, str]:
    check_text(text)
    pixels = read_image(image)
    config = self.config
    square, box = letterbox(pixels, config.image_size, config.pixel_mean, config.pixel_std)
    return _Picture(pixels, square, box), text

  def _segment(self, batch: list[tuple[_Picture, str]], batch_size: int) -> Iterator[Segmentation]:
    # A short last batch is filled up: another shape would be compiled anew.
    filled = batch + batch[:1] * (batch_size - len(batch))
    ids, token_mask = self.tokenizer([text for _, text in filled])
    logits, ious = self._forward(np.stack([picture.square for picture, _ in filled]), ids, token_mask)
    logits, ious = np.asarray(logits, np.float32), np.asarray(ious, np.float32)
    for (picture, text), square, iou in zip(batch, logits, ious):
      own_size = own_size_logits(square, picture.box, picture.pixels.shape[:2])
      mask = own_size > self._threshold
      yield Segmentation(text, self.tokenizer.cut(text), float(iou), picture.pixels, mask, own_size)


def check_text(text: str) -> None:
  """Raises UserError unless `text` is a string with something to read in it."""
  expected = "expected words that name an object, such as 'the red circle'"
  if not isinstance(text, str):
    raise UserError(f'a text of type {type(text).__name__}: {expected}')
  if not any(character.isprintable() and not character.isspace() for character in text):
    raise UserError(f'text {text!r}: nothing to read; {expected}')
  if any('\ud800' <= character <= '\udfff' for character in text):
    raise UserError(f'text {text!r}: not valid Unicode; {expected}')


def _compiled_forward(model: DitSam) -> Callable:
  graph, state = nnx.split(model)
  state = jax.device_put(state)

  @jax.jit
  def forward(state, images, token_ids, token_mask):
    output = nnx.merge(graph, state)(images, token_ids, token_mask)
    return output.logits, output.iou

  # Weights are an argument: as constants of the program they would be folded for minutes.
  return lambda *inputs: forward(state, *inputs)


def _is_list(value: Any) -> bool:
  return isinstance(value, list | tuple)


def _check_batch_size(batch_size: int) -> None:
  if not isinstance(batch_size, int) or batch_size < 1:
    raise UserError(f'batch size {batch_size!r}: expected a whole number from 1')
