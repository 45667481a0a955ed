"""Run lengths in COCO's formats, bounding boxes, and removal of small regions.

pycocotools decodes run lengths without checks, and damaged ones crash the process, so decoding is implemented here.
"""

import operator
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PIXELS

_MOST_DIGITS = 8  # characters of five bits per number; 40 bits are enough, because images have less than 2**27 pixels


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
  """Encodes a mask, bool [h, w], as COCO's compressed run lengths: {'size': [h, w], 'counts': text}."""
  runs: dict[str, Any] = dict(coco_mask.encode(np.asfortranarray(mask, np.uint8)))
  return {'size': [int(side) for side in mask.shape], 'counts': runs['counts'].decode('ascii')}


def uncompressed_rle(rle: dict[str, Any]) -> dict[str, Any]:
  """COCO's run lengths as plain numbers, {'size': [h, w], 'counts': list}. Raises UserError as `decode_rle`."""
  height, width = _size(rle)
  return {'size': [height, width], 'counts': run_lengths(rle.get('counts'), height * width).tolist()}


def decode_rle(rle: dict[str, Any]) -> np.ndarray:
  """Decodes COCO's run lengths, compressed (text or bytes) or a list of whole numbers, to a mask, bool [h, w].

  Raises:
    UserError: the run lengths are malformed, or do not add up to an image of at most MAX_PIXELS.
  """
  height, width = _size(rle)
  lengths = run_lengths(rle.get('counts'), height * width)
  # Runs alternate, starting with background, in column-major order.
  return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def run_lengths(counts: Any, pixels: int) -> np.ndarray:
  """Returns run lengths, int64 [n], background first. Raises UserError unless they are valid and add up to `pixels`."""
  if isinstance(counts, str | bytes):
    lengths = _decompressed(counts, pixels)
  elif isinstance(counts, list | tuple) or (isinstance(counts, np.ndarray) and counts.ndim == 1):
    lengths = _whole_numbers(counts)
  else:
    raise UserError(f'run lengths: counts of type {type(counts).__name__}; expected text or a list of whole numbers')
  if any(length < 0 for length in lengths):
    raise UserError(f'run lengths: {min(lengths)} pixels; expected no length below 0')
  total = sum(lengths)  # Python's integers do not overflow
  if total != pixels:
    raise UserError(f'run lengths: they add up to {total if total < 2**63 else "over 2**63"} of {pixels} pixels')
  return np.array(lengths, np.int64)


def bounding_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
  """Returns the box (x0, y0, x1, y1) of a mask, bool [h, w], with x1 and y1 exclusive; None if the mask is empty."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not rows.size:
    return None
  return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def shares_inside(masks: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]]) -> np.ndarray:
  """Returns the share of each mask that lies in each other one, f64 [n, m]. Both are `encode_rle`'s, of one size."""
  if not masks or not others:
    return np.zeros((len(masks), len(others)))
  # For a crowd region, COCO divides the intersection by the area of the first mask.
  mine, crowds = list[Any](masks), list[Any](others)
  return np.asarray(coco_mask.iou(mine, crowds, [1] * len(crowds)))


def without_small_regions(mask: np.ndarray, area: float) -> tuple[np.ndarray, bool]:
  """Removes holes, then islands, smaller than `area` pixels from `mask` bool [h, w]; returns it and whether it changed.

  Pixels that touch at a corner are connected. If all islands are small, the largest is kept. OpenCV labels the regions,
  as in Meta's code.
  """
  filled, is_filled = _without_regions(mask, area, holes=True)
  cleared, is_cleared = _without_regions(filled, area, holes=False)
  return cleared, is_filled or is_cleared


def _without_regions(mask: np.ndarray, area: float, *, holes: bool) -> tuple[np.ndarray, bool]:
  _, regions, stats, _ = cv2.connectedComponentsWithStats((mask != holes).astype(np.uint8), connectivity=8)
  sizes = stats[:, cv2.CC_STAT_AREA]
  small = sizes < area
  small[0] = False  # label 0 is not a region
  if not small.any():
    return mask, False
  if holes:
    return mask | small[regions], True
  kept = ~small
  kept[0] = False
  if not kept.any():
    kept[1 + sizes[1:].argmax()] = True
  return kept[regions], True


def _size(rle: Any) -> tuple[int, int]:
  size: Any = rle.get('size') if isinstance(rle, dict) else None
  try:
    height, width = (operator.index(side) for side in size)
  except (TypeError, ValueError) as error:
    raise UserError("run lengths: expected {'size': [height, width], 'counts': ...}") from error
  if height < 1 or width < 1 or height * width > MAX_PIXELS:
    raise UserError(f'run lengths: size {[height, width]}; expected 1 to {MAX_PIXELS:,} pixels')
  return height, width


def _whole_numbers(counts: Any) -> list[int]:
  if isinstance(counts, np.ndarray):
    counts = counts.tolist()
  wrong = [type(count).__name__ for count in counts if type(count) is not int]
  if wrong:
    raise UserError(f'run lengths: a count of type {wrong[0]}; expected whole numbers')
  return list(counts)


def _decompressed(text: str | bytes, pixels: int) -> list[int]:
  """Decompresses COCO's text: five bits per character, lowest first; from the fourth run on, differences."""
  try:
    codes = np.frombuffer(text.encode('ascii') if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
  except UnicodeEncodeError as error:
    raise UserError('run lengths: an invalid character') from error
  if not codes.size or codes.min() < 0 or codes.max() > 63:
    raise UserError('run lengths: no characters, or an invalid character')
  ends = np.flatnonzero(codes < 32)
  if not ends.size or ends[-1] != codes.size - 1:
    raise UserError('run lengths: they end in the middle of a number')
  starts = np.concatenate([[0], ends[:-1] + 1])
  digits = ends - starts + 1
  if digits.max() > _MOST_DIGITS:
    raise UserError(f'run lengths: a number of {digits.max()} characters; expected at most {_MOST_DIGITS}')
  if ends.size > 2 * pixels + 2:
    raise UserError(f'run lengths: {ends.size} runs in {pixels} pixels')
  places = 5 * (np.arange(codes.size) - np.repeat(starts, digits))
  values = np.add.reduceat((codes & 31) << places, starts)
  values -= np.where(codes[ends] & 16, 1 << (5 * digits), 0)
  # Bounding each value by the number of pixels also keeps the cumulative sums below 2**63.
  if np.abs(values).max() > pixels:
    raise UserError(f'run lengths: a run of more than the {pixels} pixels of the image')
  values[1::2] = np.cumsum(values[1::2])
  values[2::2] = np.cumsum(values[2::2])
  return values.tolist()
