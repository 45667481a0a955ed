"""Parts of contact sheets: colours, pictures and text made to fit, and the random choice of what to show."""

import random
from collections.abc import Callable
from typing import Generic, TypeVar

import cv2
import numpy as np
from PIL import ImageFont

from ditsam_jax.terminal import truncated

PAPER, INK, FAINT = '#f3f4f6', '#1c2430', '#6b7483'

T = TypeVar('T')


class Reservoir(Generic[T]):
  """A uniform random sample of at most `size` of the samples offered (reservoir sampling, algorithm R)."""

  def __init__(self, size: int, seed: int = 0) -> None:
    self.kept: list[T] = []
    self.offered = 0
    self._size, self._random = size, random.Random(seed)

  def offer(self, make: Callable[[], T]) -> None:
    self.offered += 1
    if len(self.kept) < self._size:
      self.kept.append(make())
    elif (place := self._random.randrange(self.offered)) < self._size:
      self.kept[place] = make()


def fitted(array: np.ndarray, side: int) -> np.ndarray:
  """Scales an image or mask to a long side of `side` pixels; masks stay binary."""
  height, width = array.shape[:2]
  scale = side / max(height, width)
  size = (max(1, round(width * scale)), max(1, round(height * scale)))
  if array.dtype == bool:
    # Linear interpolation gives smooth outlines instead of stairs.
    return cv2.resize(array.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
  return cv2.resize(array, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, lines: int) -> list[str]:
  """Wraps text into at most `lines` lines no wider than `width` pixels, truncated with '…'."""
  broken, words = [''], text.split()
  for word in words:
    longer = f'{broken[-1]} {word}'.strip()
    if not broken[-1] or font.getlength(longer) <= width:
      broken[-1] = longer
    else:
      broken.append(word)
  kept = broken[:lines]
  if len(broken) > lines:
    kept[-1] += '…'
  return [truncated(line, width, font.getlength) for line in kept]
