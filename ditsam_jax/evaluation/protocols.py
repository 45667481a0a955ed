"""From logits on the model's square to a mask at the image's own size, in the two ways the field uses.

`release` is what the authors' numbers were made with: the *binary* mask is resized and every pixel above 0
counts, so masks grow by up to a pixel. `standard` resizes logits and thresholds after, as most papers do.
"""

import math

import cv2
import numpy as np

from ditsam_jax.command_line import UserError
from ditsam_jax.data.augmentation import Letterbox


def logit(threshold: float) -> float:
  """The logit at which the sigmoid is `threshold`. Raises `UserError` unless it is inside (0, 1)."""
  if not 0 < threshold < 1:
    raise UserError(f'mask threshold {threshold} is not between 0 and 1; give a probability such as 0.35')
  return math.log(threshold / (1 - threshold))


def release_mask(
  logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float
) -> np.ndarray:
  """bool [h, w] of logits [S, S]: threshold, cut out, resize the 0/1 mask, keep everything above 0."""
  binary = logits[letterbox.window] > logit(threshold)
  return _resize(binary.astype(np.float32), size) > 0


def standard_mask(
  logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float
) -> np.ndarray:
  """bool [h, w] of logits [S, S]: cut out, resize, threshold."""
  return own_size_logits(logits, letterbox, size) > logit(threshold)


def own_size_logits(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int]) -> np.ndarray:
  """f32 [h, w] of logits [S, S]: the image's part, resized to its own size."""
  return _resize(logits[letterbox.window].astype(np.float32), size)


PROTOCOLS = {'release': release_mask, 'standard': standard_mask}


def fills_square(letterbox: Letterbox, size: tuple[int, int], square: int) -> bool:
  """Whether the image was neither scaled nor padded: the protocols then agree and nothing is resized."""
  return tuple(letterbox) == (0, 0, square, square) and tuple(size) == (square, square)


def _resize(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  height, width = size
  return cv2.resize(np.ascontiguousarray(values), (width, height), interpolation=cv2.INTER_LINEAR)
