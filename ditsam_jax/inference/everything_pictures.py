"""Draws all masks of an image in different colours, small ones on top."""

import colorsys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from ditsam_jax.drawing.captions import caption
from ditsam_jax.drawing.overlays import line_type
from ditsam_jax.geometry.masks import decode_rle

_SHARE = 0.7  # share of a mask's colour; the rest is the pixel's brightness, because mixing colours gives grey
_DIM = 0.55  # brightness factor outside all masks
_GOLDEN = 0.618034  # hue step; gives distinct hues for any number of masks


def draw_everything(image: np.ndarray, records: Sequence[dict[str, Any]], words: str) -> np.ndarray:
  """Draws all masks over an image, and a caption with a text and the number of masks.

  Args:
    image: uint8 [h, w, 3].
    records: records of SamAutomaticMaskGenerator, with run lengths or masks; decoded one at a time.
    words: text of the caption.

  Returns:
    uint8 [h, w, 3].
  """
  pixels = cv2.convertScaleAbs(image, alpha=_DIM)
  covered = np.zeros(image.shape[:2], np.uint8)
  thickness = max(1, round(max(image.shape[:2]) / 400))
  for number, record in enumerate(sorted(records, key=lambda record: -record['area'])):
    mask = _mask(record['segmentation'])
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
      continue
    box = slice(top, top + height), slice(left, left + width)
    covered |= mask
    cv2.copyTo(_mixed(image[box], colour_of(number)), mask[box], pixels[box])
    contours, _ = cv2.findContours(mask[box], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
    cv2.polylines(pixels, contours, True, (255, 255, 255), thickness, line_type(thickness))
  count = f'{len(records):,} mask{"" if len(records) == 1 else "s"}'
  figures = (count, f'{len(records):,}') if records else ('nothing found', 'nothing', 'none')
  strip = caption(image.shape[:2], words, figures)
  if strip is not None:
    rows = len(strip)
    at_top = np.count_nonzero(covered[:rows]) < np.count_nonzero(covered[-rows:])  # where it hides less
    pixels[slice(rows) if at_top else slice(len(pixels) - rows, None)] = strip
  return pixels


def colour_of(number: int) -> tuple[int, int, int]:
  """Returns the colour of a mask, (red, green, blue)."""
  red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75 if number % 2 else 0.95, 1.0)
  return round(255 * red), round(255 * green), round(255 * blue)


def _mask(segmentation: Any) -> np.ndarray:
  """Decodes a segmentation to uint8 [h, w]."""
  mask = decode_rle(segmentation) if isinstance(segmentation, dict) else segmentation
  return np.ascontiguousarray(mask).astype(np.uint8)


def _mixed(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
  mixing = np.hstack([np.full((3, 3), (1 - _SHARE) / 3), _SHARE * np.array(colour, np.float64)[:, None]])
  return cv2.transform(pixels, mixing)
