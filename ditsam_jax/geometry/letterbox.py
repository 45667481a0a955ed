"""Letterboxing: fits images of any size into the model's square, and maps results back.

Numbers and rounding follow the DIT release.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

from ditsam_jax.errors import UserError

Triple = tuple[float, float, float]

_MOST_PLANES = 128  # that OpenCV 5 resizes at once


class Letterbox(NamedTuple):
  """Position and size of the resized image in the square, in pixels."""

  top: int
  left: int
  height: int
  width: int

  @property
  def window(self) -> tuple[slice, slice]:
    """The rows and columns of the image in the square, as slices."""
    return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def resized_shape(height: int, width: int, long_side: int) -> tuple[int, int]:
  """Height and width scaled to a long side of `long_side`, keeping the aspect ratio; at least one pixel each."""
  scale = long_side / max(height, width)
  return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: np.ndarray, long_side: int) -> np.ndarray:
  """Resizes an image, uint8 [h, w, 3], bilinearly to a long side of `long_side`."""
  return _resize(image, long_side, cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, long_side: int, *, unbiased: bool = False) -> np.ndarray:
  """Resizes a mask, bool [h, w] or [h, w, n], to a long side of `long_side`: uint8 0/1.

  The default is OpenCV's nearest neighbour, as in the DIT release: it takes the pixel at the top left, so a smaller
  mask is up to half a pixel lower and further right than the image. With `unbiased`, a pixel belongs to the mask if at
  least half of it does.
  """
  if not unbiased or max(mask.shape[:2]) == long_side:
    if mask.ndim == 2:
      return _resize(mask.astype(np.uint8), long_side, cv2.INTER_NEAREST)
    parts = np.split(mask.astype(np.uint8), range(_MOST_PLANES, mask.shape[2], _MOST_PLANES), -1)
    parts = [_resize(part, long_side, cv2.INTER_NEAREST) for part in parts]
    return np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], -1)
  method = cv2.INTER_AREA if long_side < max(mask.shape[:2]) else cv2.INTER_LINEAR
  planes = mask.astype(np.float32).reshape(*mask.shape[:2], -1)  # OpenCV resizes at most four by area at once
  covered = np.stack([_resize(planes[..., i], long_side, method) for i in range(planes.shape[2])], -1)
  return (covered.reshape(*covered.shape[:2], *mask.shape[2:]) >= 0.5).astype(np.uint8)


def normalise(image: np.ndarray, mean: Triple, std: Triple) -> np.ndarray:
  """Computes (image / 255 - mean) / std in float32 for an image, uint8 [h, w, 3]; mean and std on a scale of 0 to 1."""
  return cv2.LUT(image, _normalised_levels(tuple(mean), tuple(std)))


def centre(array: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
  """Centres an array [h, w, ...], with sides up to `size`, in a square of zeros; returns the square and position."""
  height, width = array.shape[:2]
  box = _centred(height, width, size)
  if array.shape[:2] == (size, size):
    return array, box
  square = np.zeros((size, size, *array.shape[2:]), array.dtype)
  square[box.window] = array
  return square, box


def top_left(array: np.ndarray, size: int) -> np.ndarray:
  """Pads an array [h, w, ...], with sides up to `size`, with zeros at the bottom and right, as SAM pads images."""
  square = np.zeros((size, size, *array.shape[2:]), array.dtype)
  square[: array.shape[0], : array.shape[1]] = array
  return square


def letterbox(image: np.ndarray, size: int, mean: Triple, std: Triple) -> tuple[np.ndarray, Letterbox]:
  """Resizes, normalises and centres an image, uint8 [h, w, 3]: float32 [size, size, 3], and its position.

  The padding is zero after normalisation.
  """
  return centre(normalise(resize(image, size), mean, std), size)


@dataclasses.dataclass(frozen=True)
class Unplaced:
  """An image, uint8 [h, w, 3], that will be normalised and centred directly into its batch.

  Creating a square for each sample and copying it into the batch takes several times as long.
  """

  image: np.ndarray
  size: int
  mean: Triple
  std: Triple
  centred: bool = True  # False: at the top left, as in SAM

  def place(self, square: np.ndarray) -> None:
    """Writes the normalised image into `square`, float32 [size, size, 3] of zeros, at the position of `centred`."""
    height, width = self.image.shape[:2]
    box = _centred(height, width, self.size) if self.centred else Letterbox(0, 0, height, width)
    cv2.LUT(self.image, _normalised_levels(tuple(self.mean), tuple(self.std)), square[box.window])


def logit(threshold: float) -> float:
  """Returns the logit at which the sigmoid is `threshold`. Raises UserError unless 0 < threshold < 1."""
  if not 0 < threshold < 1:
    raise UserError(f'mask threshold {threshold} is not between 0 and 1; give a probability such as 0.35')
  return math.log(threshold / (1 - threshold))


def own_size_logits(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int]) -> np.ndarray:
  """Crops logits [S, S] to the image and resizes them to its own size, f32 [h, w]."""
  return to_own_size(logits[letterbox.window].astype(np.float32), size)


def fills_square(letterbox: Letterbox, size: tuple[int, int], square: int) -> bool:
  """Returns whether the image was neither scaled nor padded, so the evaluation protocols agree."""
  return tuple(letterbox) == (0, 0, square, square) and tuple(size) == (square, square)


def to_own_size(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes values [h', w'], cropped from a square, bilinearly to the image's own size, f32 [h, w]."""
  height, width = size
  return cv2.resize(np.ascontiguousarray(values), (width, height), interpolation=cv2.INTER_LINEAR)


def _resize(array: np.ndarray, long_side: int, interpolation: int) -> np.ndarray:
  height, width = array.shape[:2]
  rows, columns = resized_shape(height, width, long_side)
  if (rows, columns) == (height, width):
    return array
  return cv2.resize(array, (columns, rows), interpolation=interpolation)


def _centred(height: int, width: int, size: int) -> Letterbox:
  # The release's rounding subtracts 0.1, so an odd margin puts the extra row at the bottom.
  return Letterbox(round((size - height) / 2 - 0.1), round((size - width) / 2 - 0.1), height, width)


@functools.cache
def _normalised_levels(mean: Triple, std: Triple) -> np.ndarray:
  """A lookup table of normalised 8-bit levels, float32 [1, 256, 3]; six times faster than the arithmetic."""
  levels = np.arange(256)[:, None] / 255
  return ((levels - np.array(mean)) / np.array(std)).astype(np.float32)[None]
