"""Augmentation of an image with its mask and sentence: random scale, colour jitter and flip, one function each.

Steps and numbers follow the DIT release. All random choices come from the generator passed in.
"""

import dataclasses
import re

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageStat

from ditsam_jax.errors import UserError
from ditsam_jax.fields import SHARE, Flag, Whole, declared
from ditsam_jax.geometry.letterbox import resize, resize_mask

# Matches 'leftmost' and 'left-hand' too, but not 'bright' or 'leftover'.
_SIDE = re.compile(r'\b(left|right)(?=(?:most|hand)?\b)', re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class AugmentationConfig:
  """Augmentation of training samples; the defaults are the DIT release's."""

  scale_steps: int = declared(
    7, Whole(1, 256), 'Sizes that the long side is drawn from: S, S - stride, S - 2 stride, ...'
  )
  scale_stride: int = declared(32, Whole(0, 4096), 'Pixels between these sizes')
  jitter_probability: float = declared(0.8, SHARE, 'How often brightness, contrast and saturation change')
  jitter_strength: float = declared(0.4, SHARE, 'Their factors are uniform in 1 - strength to 1 + strength')
  flip_probability: float = declared(
    0.5, SHARE, "How often a sample is mirrored, with 'left' and 'right' swapped in the text"
  )

  unbiased_masks: bool = declared(
    False,
    Flag(),
    'Resize masks by area, so that edges stay where they are in the image; False as the release, whose masks are up to '
    'half a pixel lower and further right',
  )

  def check(self, size: int) -> None:
    """Raises UserError if the smallest scale is less than one pixel for images of `size` pixels."""
    smallest = size - self.scale_stride * (self.scale_steps - 1)
    if self.scale_steps < 1 or smallest < 1:
      raise UserError(
        f'augmentation: {self.scale_steps} scales in steps of {self.scale_stride} pixels do not '
        f'fit images of {size} pixels (the smallest is {smallest}); use fewer or smaller steps'
      )


def random_scale(
  image: np.ndarray,
  mask: np.ndarray,
  size: int,
  config: AugmentationConfig,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Resizes the image, uint8, and the mask, to uint8 0/1, to a long side of `size` minus a random number of strides."""
  long_side = size - config.scale_stride * int(rng.integers(config.scale_steps))
  return resize(image, long_side), resize_mask(mask, long_side, unbiased=config.unbiased_masks)


def color_jitter(image: np.ndarray, config: AugmentationConfig, rng: np.random.Generator) -> np.ndarray:
  """Randomly changes brightness, contrast and saturation of an image, uint8 [h, w, 3], in random order, or nothing."""
  if rng.random() >= config.jitter_probability:
    return image
  picture, levels = Image.fromarray(image), _LEVELS
  for step in rng.permutation(len(_JITTERS)):
    factor = rng.uniform(1 - config.jitter_strength, 1 + config.jitter_strength)
    picture, levels = _JITTERS[step](picture, levels, factor)
  return np.asarray(_mapped(picture, levels))


def flip(
  image: np.ndarray,
  mask: np.ndarray,
  text: str,
  config: AugmentationConfig,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, str]:
  """Randomly mirrors image, mask and text together."""
  if rng.random() >= config.flip_probability:
    return image, mask, text
  return cv2.flip(image, 1), mask[:, ::-1], swap_sides(text)  # OpenCV limits the number of masks


def swap_sides(text: str) -> str:
  """Swaps the words 'left' and 'right' in a text, also in 'leftmost' and 'left-hand'."""
  return _SIDE.sub(lambda side: 'right' if side.group().lower() == 'left' else 'left', text)


# Bit-identical to Pillow's enhancers. Brightness and contrast depend only on a pixel's level, so Pillow applies them to
# the 256 levels, and to the picture only if the next step needs its pixels. This takes three quarters of the time.
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
