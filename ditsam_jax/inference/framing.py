"""Fits images of any size into the model's square, and maps points into it and logits back to the image.

Plain SAM follows Meta's code: the long side is scaled to the square, with padding on the right and at the bottom.
Models with a text encoder centre the image, as in training and evaluation.
"""

import dataclasses

import cv2
import numpy as np
from PIL import Image

from ditsam_jax.geometry.letterbox import Letterbox, letterbox, normalise, own_size_logits, top_left
from ditsam_jax.inference.engine import Square
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.ops.resize import resize_matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Framed:
  """An image fitted into the model's square.

  Attributes:
    image: the original, uint8 [h, w, 3].
    square: the model's input.
    box: position of the image in the square.
    config: the model's config.
  """

  image: np.ndarray
  square: Square
  box: Letterbox
  config: DitSamConfig

  @property
  def size(self) -> tuple[int, int]:
    """Height and width of the image."""
    return self.image.shape[:2]

  @property
  def scale(self) -> np.ndarray:
    """Scale [2] that maps (x, y) of the image to the square, together with `offset`: scale * xy + offset."""
    height, width = self.size
    return np.array([self.box.width / width, self.box.height / height])

  @property
  def offset(self) -> np.ndarray:
    """Offset [2] added after scaling, see `scale`."""
    return np.array([self.box.left, self.box.top], np.float64)

  def own_size(self, low_res: np.ndarray) -> np.ndarray:
    """Upsamples low-resolution logits [M, S/4, S/4] to the image's own size, f32 [M, h, w]."""
    squares = (_upscaled(logits, self.config.image_size, self.config.align_corners) for logits in low_res)
    return np.stack([own_size_logits(square, self.box, self.size) for square in squares])

  def own_size_operators(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns `own_size` as matrices: rows f32 [h, S/4] and columns f32 [w, S/4], for rows @ logits @ columns.T."""
    height, width = self.size
    box, side, aligned = self.box, self.config.image_size, self.config.align_corners
    low_res = 4 * self.config.grid
    return (
      _operator(low_res, side, aligned, box.top, box.height, height),
      _operator(low_res, side, aligned, box.left, box.width, width),
    )


def frame(image: np.ndarray, config: DitSamConfig) -> Framed:
  """Fits an image, uint8 [h, w, 3], into the model's square."""
  if config.text_encoder is None:
    pixels, box = _top_left(image, config)
  else:
    pixels, box = letterbox(image, config.image_size, config.pixel_mean, config.pixel_std)
  return Framed(image, Square(pixels), box, config)


def resized_as_meta(height: int, width: int, long_side: int) -> tuple[int, int]:
  """Height and width scaled so that the longer one is `long_side`, rounded as in Meta's ResizeLongestSide."""
  scale = long_side * 1.0 / max(height, width)
  return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))


def resize_as_meta(image: np.ndarray, long_side: int) -> np.ndarray:
  """Resizes an image, uint8 [h, w, 3], to a long side of `long_side` with Pillow, which antialiases when shrinking."""
  height, width = resized_as_meta(image.shape[0], image.shape[1], long_side)
  return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _top_left(image: np.ndarray, config: DitSamConfig) -> tuple[np.ndarray, Letterbox]:
  """Meta's ResizeLongestSide and preprocess: returns f32 [S, S, 3] and the position of the image."""
  resized = resize_as_meta(image, config.image_size)
  square = top_left(normalise(resized, config.pixel_mean, config.pixel_std), config.image_size)
  return square, Letterbox(0, 0, *resized.shape[:2])


def _operator(low_res: int, side: int, aligned: bool, start: int, length: int, own: int) -> np.ndarray:
  """Returns a matrix f32 [own, low_res] that resizes an axis of low-resolution logits to the image's own size."""
  part = resize_matrix(low_res, side, 'linear', aligned)[start : start + length]
  return part if own == length else cv2.resize(part, (low_res, own), interpolation=cv2.INTER_LINEAR)


def _upscaled(logits: np.ndarray, size: int, align_corners: bool) -> np.ndarray:
  """Upsamples low-resolution logits [s, s] to f32 [size, size], like `ops.resize.resize_masks`.

  This runs on the host, because the transfer from the device would take 16 times the bandwidth.
  """
  if logits.shape[0] == size:
    return logits
  if not align_corners:
    return cv2.resize(logits, (size, size), interpolation=cv2.INTER_LINEAR)
  matrix = resize_matrix(logits.shape[0], size, 'linear', align_corners)
  return matrix @ logits @ matrix.T
