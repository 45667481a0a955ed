"""Runs evaluation batches through the engine; images are encoded once if possible.

The engine's programs always get ROWS_AT_ONCE rows per device, so the batch size and the number of devices do not change
a bit of the logits. Otherwise rounding would flip about one pixel in a million, those closest to the threshold.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.data.batches import Batch
from ditsam_jax.inference.engine import Engine, Row, Sentence, Square
from ditsam_jax.models.ditsam import DitSam

Forward = Callable[[Batch], jax.Array]

ROWS_AT_ONCE = 8


def forward_of(model: DitSam, *, share_images: bool = True, dtype: str | None = None) -> Forward:
  """Returns a function from a batch to logits, f32 [B, S, S]; the model always runs in eval mode.

  Rows are distributed over the devices of this host. Models of the same structure share compiled programs, so weights
  may change between evaluations.

  Args:
    model: the model.
    share_images: if sentences do not enter the image encoder, encode the image of consecutive rows with the same
      'image_index' once. False encodes the image of each row, as fusions with slots must.
    dtype: compute type, see `Engine`; None uses the type of the weights.
  """
  return _Forward(Engine(model, dtype), share_images and not model.config.encodes_text_with_image)


class _Forward:
  def __init__(self, engine: Engine, share_images: bool):
    self.dtype = engine.dtype
    self._engine, self._share_images = engine, share_images
    self._last: Square | None = None  # the last image, with which the next batch often starts

  def __call__(self, batch: Batch) -> jax.Array:
    words = zip(batch['token_ids'], batch['token_mask'])
    rows = [Row(square, Sentence(*both)) for square, both in zip(self._squares(batch), words)]
    pieces = self._engine.run(rows, ROWS_AT_ONCE, squares=True)
    # Nothing here waits for results, so all devices run concurrently.
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
      # Compares pixels, because the same index is another image in another split.
      elif not i and self._last is not None and np.array_equal(image, self._last.pixels):
        squares.append(self._last)
      else:
        squares.append(Square(image))
    if squares[-1] is not self._last:
      self._last = last = squares[-1]
      last.pixels = images[-1].copy()  # a view would keep the whole batch
    return squares
