"""Turning an image of any size, its mask and its sentence into the model's square; each step alone.

Steps and numbers are those of the DIT release. Every random choice comes from the generator passed in.
"""

import dataclasses
import functools
import re
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageStat

from ditsam_jax.command_line import UserError

Triple = tuple[float, float, float]
# 'leftmost' and 'left-hand' turn too; 'bright' and 'leftover' hold no side.
_SIDE = re.compile(r'\b(left|right)(?=(?:most|hand)?\b)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
  """What training does to a sample; the defaults are the DIT release's."""
  scale_steps: int = 7               # long side drawn from this many sizes: S, S - stride, S - 2 stride, ...
  scale_stride: int = 32             # pixels
  jitter_probability: float = 0.8    # of brightness, contrast and saturation being changed
  jitter_strength: float = 0.4       # factors are uniform in 1 - strength .. 1 + strength
  flip_probability: float = 0.5      # of mirroring, with 'left' and 'right' swapped in the text

  def check(self, size: int) -> None:
    """Raises UserError when the smallest scale leaves nothing of a `size` pixel square."""
    smallest = size - self.scale_stride * (self.scale_steps - 1)
    if self.scale_steps < 1 or smallest < 1:
      raise UserError(f'augmentation: {self.scale_steps} scales in steps of {self.scale_stride} pixels do not '
                      f'fit images of {size} pixels (the smallest is {smallest}); take fewer or smaller steps')


class Letterbox(NamedTuple):
  """Where the resized image lies in the square, in pixels."""
  top: int
  left: int
  height: int
  width: int

  @property
  def window(self) -> tuple[slice, slice]:
    """The rows and columns of the square that hold the image."""
    return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def resized_shape(height: int, width: int, long_side: int) -> tuple[int, int]:
  """Height and width with the longer one at `long_side`, the ratio kept, no side below one pixel."""
  scale = long_side / max(height, width)
  return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: np.ndarray, long_side: int) -> np.ndarray:
  """`image` uint8 [h, w, 3] with its long side at `long_side`, bilinear."""
  return _resize(image, long_side, cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, long_side: int) -> np.ndarray:
  """`mask` bool [h, w] or [h, w, n] as uint8 0/1 with its long side at `long_side`, nearest neighbour."""
  return _resize(mask.astype(np.uint8), long_side, cv2.INTER_NEAREST)


def normalise(image: np.ndarray, mean: Triple, std: Triple) -> np.ndarray:
  """(image / 255 - mean) / std in float32, of `image` uint8 [h, w, 3]; mean and std on the 0..1 scale."""
  return cv2.LUT(image, _normalised_levels(tuple(mean), tuple(std)))


def centre(array: np.ndarray, size: int) -> tuple[np.ndarray, Letterbox]:
  """`array` [h, w, ...], no side above `size`, amid a `size` square of zeros, and where it lies."""
  box = _centred(*array.shape[:2], size)
  if array.shape[:2] == (size, size):
    return array, box
  square = np.zeros((size, size, *array.shape[2:]), array.dtype)
  square[box.window] = array
  return square, box


def letterbox(image: np.ndarray, size: int, mean: Triple, std: Triple) -> tuple[np.ndarray, Letterbox]:
  """`image` uint8 [h, w, 3], resized, normalised and centred as evaluation does: float32 [size, size, 3].

  The padding is zero after normalisation. Also returns where the image lies, (top, left, height, width).
  """
  return centre(normalise(resize(image, size), mean, std), size)


@dataclasses.dataclass(frozen=True)
class Unplaced:
  """`image` uint8 [h, w, 3] on its way into a square: it is normalised straight into its batch, once.

  A square of its own for every sample, copied into the batch after, takes several times as long.
  """
  image: np.ndarray
  size: int
  mean: Triple
  std: Triple

  def place(self, square: np.ndarray) -> None:
    """Writes what `centre(normalise(image))` is into `square`, float32 [size, size, 3] of zeros."""
    box = _centred(*self.image.shape[:2], self.size)
    cv2.LUT(self.image, _normalised_levels(tuple(self.mean), tuple(self.std)), square[box.window])


def random_scale(
    image: np.ndarray, mask: np.ndarray, size: int, config: AugmentationConfig, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Image uint8 and mask (as uint8 0/1) with the long side at `size` less a random number of strides."""
  long_side = size - config.scale_stride * int(rng.integers(config.scale_steps))
  return resize(image, long_side), resize_mask(mask, long_side)


def color_jitter(image: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
  """`image` uint8 [h, w, 3] with brightness, contrast, saturation changed, in random order, or as it was."""
  if rng.random() >= config.jitter_probability:
    return image
  picture, levels = Image.fromarray(image), _LEVELS
  for step in rng.permutation(len(_JITTERS)):
    factor = rng.uniform(1 - config.jitter_strength, 1 + config.jitter_strength)
    picture, levels = _JITTERS[step](picture, levels, factor)
  return np.asarray(_mapped(picture, levels))


def flip(
    image: np.ndarray, mask: np.ndarray, text: str, config: AugmentationConfig, rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, str]:
  """Image, mask and text, all mirrored or all as they were."""
  if rng.random() >= config.flip_probability:
    return image, mask, text
  return cv2.flip(image, 1), cv2.flip(mask, 1), swap_sides(text)


def swap_sides(text: str) -> str:
  """`text` with 'left' and 'right' swapped wherever they are words, 'leftmost' and 'left-hand' among them."""
  return _SIDE.sub(lambda side: 'right' if side.group().lower() == 'left' else 'left', text)


def _resize(array: np.ndarray, long_side: int, interpolation: int) -> np.ndarray:
  height, width = resized_shape(*array.shape[:2], long_side)
  if (height, width) == array.shape[:2]:
    return array
  return cv2.resize(array, (width, height), interpolation=interpolation)


def _centred(height: int, width: int, size: int) -> Letterbox:
  # The release's rounding, half a pixel less a tenth: an odd margin gives its extra row to the bottom.
  return Letterbox(round((size - height) / 2 - 0.1), round((size - width) / 2 - 0.1), height, width)


# Pillow's enhancers, bit for bit. Two of the three do the same to every pixel of a level, so they are done to the 256
# levels, by Pillow, and to the picture only when the next step looks at its pixels: three quarters of the time.
_LEVELS = Image.frombytes('L', (256, 1), bytes(range(256)))


def _brightness(picture: Image.Image, levels: Image.Image, factor: float) -> tuple[Image.Image, Image.Image]:
  return picture, _blended(0, levels, factor)


def _contrast(picture: Image.Image, levels: Image.Image, factor: float) -> tuple[Image.Image, Image.Image]:
  picture = _mapped(picture, levels)
  grey = int(ImageStat.Stat(picture.convert('L')).mean[0] + 0.5)
  return picture, _blended(grey, _LEVELS, factor)


def _saturation(picture: Image.Image, levels: Image.Image, factor: float) -> tuple[Image.Image, Image.Image]:
  return ImageEnhance.Color(_mapped(picture, levels)).enhance(factor), _LEVELS


_JITTERS = (_brightness, _contrast, _saturation)


def _blended(grey: int, levels: Image.Image, factor: float) -> Image.Image:
  return Image.blend(Image.new('L', levels.size, grey), levels, factor)


def _mapped(picture: Image.Image, levels: Image.Image) -> Image.Image:
  return picture if levels is _LEVELS else picture.point(levels.tobytes() * 3)


@functools.cache
def _normalised_levels(mean: Triple, std: Triple) -> np.ndarray:
  """Float32 [1, 256, 3], what each 8-bit level becomes: a table is six times as fast as the arithmetic."""
  levels = np.arange(256)[:, None] / 255
  return ((levels - np.array(mean)) / np.array(std)).astype(np.float32)[None]
