"""A model as a function of an evaluation batch: its rows go through the engine, images encoded once where they can be.

The engine's programs always get ROWS_AT_ONCE rows on one device, whatever the batch size and the number of devices, so
these change no bit of the logits: a pixel in a million lies close enough to the threshold to be moved by rounding.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.data.pipeline import Batch
from ditsam_jax.inference.engine import Engine, Row, Sentence, Square
from ditsam_jax.models.ditsam import DitSam

Forward = Callable[[Batch], jax.Array]

ROWS_AT_ONCE = 8


def forward_of(model: DitSam, *, share_images: bool = True, dtype: str | None = None) -> Forward:
  """The model as a function of a batch: logits f32 [B, S, S]; always in evaluation mode.

  The devices of this host share the rows. Models of the same structure share what is compiled, so weights may change
  between evaluations. Where the sentence does not enter the image encoder (fusion 'none'), rows of the same
  'image_index' share one image embedding; `share_images=False` encodes the image of every row, as all other fusions
  must. `dtype` is what to compute in, see `Engine`; None for the type of the weights.
  """
  return _Forward(Engine(model, dtype), share_images and model.config.fusion == 'none')


class _Forward:
  def __init__(self, engine: Engine, share_images: bool):
    self.dtype = engine.dtype
    self._engine, self._share_images = engine, share_images
    self._last: Square | None = None  # the last batch's last image, which the next one often begins with

  def __call__(self, batch: Batch) -> jax.Array:
    words = zip(batch['token_ids'], batch['token_mask'])
    rows = [Row(square, Sentence(*both)) for square, both in zip(self._squares(batch), words)]
    pieces = self._engine.run(rows, ROWS_AT_ONCE, squares=True)
    # Nothing waits for a result, so the devices work at the same time.
    first = self._engine.devices[0]
    return jnp.concatenate([jax.device_put(piece.logits, first) for piece in pieces])[: len(rows), 0]

  def _squares(self, batch: Batch) -> list[Square]:
    images = batch['image']
    if not self._share_images:
      return [Square(image) for image in images]
    squares = []
    for i, image in enumerate(images):
      if i and batch['image_index'][i] == batch['image_index'][i - 1]:
        squares.append(squares[-1])
      # By the pixels: the same index means another image in another split.
      elif not i and self._last is not None and np.array_equal(image, self._last.pixels):
        squares.append(self._last)
      else:
        squares.append(Square(image))
    if squares[-1] is not self._last:
      self._last = last = squares[-1]
      last.pixels = images[-1].copy()  # a view would keep the whole batch
    return squares
