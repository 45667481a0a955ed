"""Masks of users' own data: PNG files, COCO polygons and run lengths."""

import dataclasses
import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.data.own.entries import shown
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import MOST_BYTES
from ditsam_jax.data.preparation.masks import MaskError, draw_polygons, draw_runs
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PIXELS
from ditsam_jax.storage.files import read_bytes
from ditsam_jax.terminal import listed


@dataclasses.dataclass(frozen=True, slots=True)
class Segmentation:
  """COCO polygons (float64 [2 n]) or run lengths. Run lengths may be empty, polygons may not."""

  value: Any

  def draw(self, height: int, width: int) -> np.ndarray:
    """Returns the mask, bool [height, width]. Raises MaskError."""
    if isinstance(self.value, dict):
      size = self.value.get('size')
      if isinstance(size, list) and len(size) == 2 and size != [height, width]:
        raise MaskError(problems.MASK_SIZE, f'size {shown(size)}, the image has {[height, width]} (height, width)')
      return draw_runs(self.value, height, width)
    if max(height, width) > 2 and self.value and all(part.size and (abs(part) <= 1).all() for part in self.value):
      raise MaskError(problems.MALFORMED_MASK, 'coordinates from 0 to 1; expected pixels')
    mask = draw_polygons(self.value, height, width)
    if not mask.any():
      raise MaskError(problems.NO_MASK, 'no pixels; write null if the sentence refers to nothing in the image')
    return mask


@dataclasses.dataclass(frozen=True, slots=True)
class MaskFile:
  """A PNG mask: black is background, anything else the object. All black means no target."""

  file: str
  name: str  # for messages

  def draw(self, height: int, width: int) -> np.ndarray:
    """Returns the mask, bool [height, width]. Raises MaskError."""
    try:
      data = read_bytes(self.file, most_bytes=MOST_BYTES)
    except UserError as error:
      missing = isinstance(error.__cause__, FileNotFoundError)
      raise MaskError(problems.MASK_FILE, 'no such file' if missing else str(error)) from error
    return decoded(data, height, width)


def decoded(data: bytes, height: int, width: int) -> np.ndarray:
  """Returns the mask in a PNG's bytes: black and one other value. Soft edges are cut at half.

  Raises:
    MaskError: the data is not a PNG, has another size, colours, or several values (numbered objects).
  """
  try:
    with (
      warnings.catch_warnings(action='ignore'),  # Pillow warns about sizes and tags
      Image.open(io.BytesIO(data), formats=('PNG',)) as picture,
    ):
      if (picture.height, picture.width) != (height, width):  # before pixels are allocated
        reason = f'{picture.width} x {picture.height}, the image is {width} x {height}'
        raise MaskError(problems.MASK_SIZE, reason)
      if height * width > MAX_PIXELS:
        raise MaskError(problems.MASK_FILE, 'too many pixels')
      picture.load()
      levels, indexed = _levels(picture), picture.mode == 'P'
  except (MaskError, MemoryError):
    raise
  except Exception as error:  # Pillow's decoders raise almost anything on damaged data
    reason = 'not a PNG' if not data.startswith(b'\x89PNG') else str(error).split('\n')[0]
    raise MaskError(problems.MASK_FILE, reason) from error
  values, counts = np.unique(levels, return_counts=True)
  if len(values) <= 2 and (values[0] == 0 or len(values) == 1):
    return levels != 0
  top = 255 if levels.dtype == np.uint8 else 65535
  # Soft edges are accepted, numbered objects are not.
  soft = counts[(values > 0) & (values < top)].sum()
  if indexed or values[-1] != top or soft > counts[-1]:
    listing = listed(values.tolist())
    raise MaskError(problems.MALFORMED_MASK, f'values {listing}; expected black and one other value, a file per object')
  return levels > top // 2


def _levels(picture: Image.Image) -> np.ndarray:
  """Returns grey levels, palette indices or opacity, uint8 or uint16 [h, w]. Raises MaskError for colours."""
  if picture.mode == '1':
    return np.asarray(picture, np.uint8)
  if picture.mode == 'L':
    return np.asarray(picture)
  if picture.mode == 'P':
    return _indices(picture)
  if picture.mode.startswith('I'):
    return np.asarray(picture).astype(np.uint16)
  channels = np.asarray(picture.convert('RGBA'))
  colours, alpha = channels[..., :3], channels[..., 3]
  if not (colours == colours[..., :1]).all():
    raise MaskError(problems.MALFORMED_MASK, 'coloured; expected black and white')
  grey = colours[..., 0]
  if (alpha == 255).all():
    return grey
  visible = np.unique(grey[alpha > 0])
  if len(visible) > 1:
    raise MaskError(problems.MALFORMED_MASK, 'both grey levels and transparency; expected black and white')
  return alpha  # one colour on a transparent background


def _indices(picture: Image.Image) -> np.ndarray:
  """Returns palette indices, uint8 [h, w]; 0 and 1 if one of two colours is black: programs order palettes freely."""
  indices, palette = np.asarray(picture), np.reshape(picture.getpalette() or [], (-1, 3))
  used = np.unique(indices)
  black = [index for index in used if index < len(palette) and not palette[index].any()]
  return (indices != black[0]).astype(np.uint8) if len(used) == 2 and len(black) == 1 else indices
