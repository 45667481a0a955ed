"""COCO masks: polygons, and compressed or uncompressed run lengths."""

import reprlib
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ditsam_jax.data.preparation import problems
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle

_MOST_STEPS = 2**24  # fifths of a pixel along all edges of a mask; pycocotools stores 24 bytes for each

_SLACK = 5.0  # pixels by which a polygon may leave its image; annotators overshoot, and the excess is clipped


class MaskError(ValueError):
  """Raised for a mask that cannot be drawn; `kind` is a constant of problems.py."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
  """Returns the mask, bool [height, width]. Raises MaskError if it is missing, malformed, empty or too large."""
  if isinstance(segmentation, dict):
    mask = draw_runs(segmentation, height, width)
  elif segmentation is None or isinstance(segmentation, list):
    mask = draw_polygons(segmentation or [], height, width)
  else:
    raise MaskError(problems.MALFORMED_MASK, f'{reprlib.repr(segmentation)} is neither polygons nor run lengths')
  if not mask.any():
    raise MaskError(problems.NO_MASK, 'no pixels')
  return mask


def compact(segmentation: Any) -> Any:
  """Converts polygons to float64 [2 n] arrays, a tenth of the memory; returns anything else unchanged."""
  if not isinstance(segmentation, list):
    return segmentation
  try:
    return [np.asarray(part, np.float64).reshape(-1) for part in segmentation]
  except (ValueError, TypeError, OverflowError):
    return [np.array([np.nan])]  # reported as malformed when drawn


def draw_polygons(parts: list[np.ndarray], height: int, width: int) -> np.ndarray:
  """Returns the union of polygons, each float64 [2 n]: x, y, x, y, ... Raises MaskError."""
  for part in parts:
    if part.size % 2 or not np.isfinite(part).all():
      raise MaskError(problems.MALFORMED_MASK, 'a polygon that is not a list of x, y')
    # Also bounds time and memory, which grow with the length of the edges.
    points = part.reshape(-1, 2)
    if (points < -_SLACK).any() or (points > np.array([width, height]) + _SLACK).any():
      raise MaskError(problems.LARGE_MASK, f'a polygon leaves the {width} x {height} image')
  steps = sum(np.abs(np.diff(part.reshape(-1, 2), axis=0)).max(1).sum() * 5 + part.size for part in parts if part.size)
  if steps > _MOST_STEPS:
    raise MaskError(problems.MALFORMED_MASK, f'polygons whose edges are {steps / 5:,.0f} pixels long')
  # Fewer than three points have no area; pycocotools would treat two points as a box.
  polygons = [part.tolist() for part in parts if part.size >= 6]
  if not polygons:
    raise MaskError(problems.NO_MASK, 'no polygon')
  return draw_runs(dict(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))), height, width)


def draw_runs(runs: dict[str, Any], height: int, width: int) -> np.ndarray:
  """Returns the mask of run lengths, which may be empty. Raises MaskError."""
  counts, size = runs.get('counts'), runs.get('size')
  if counts is None or (isinstance(counts, list | str | bytes) and not counts):
    raise MaskError(problems.NO_MASK, 'no counts')
  if isinstance(size, list) and size != [height, width]:
    raise MaskError(
      problems.LARGE_MASK, f'run lengths of {reprlib.repr(size)}, image of {[height, width]} (height, width)'
    )
  try:
    return decode_rle(runs)
  except UserError as error:
    raise MaskError(problems.MALFORMED_MASK, str(error)) from error
