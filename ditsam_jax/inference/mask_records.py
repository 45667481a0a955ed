"""Converts masks to Meta's records; removes small regions and the duplicates that this creates."""

import dataclasses
from typing import Any

import numpy as np

from ditsam_jax.geometry.masks import decode_rle, encode_rle, uncompressed_rle, without_small_regions
from ditsam_jax.geometry.point_grids import Box
from ditsam_jax.inference.mask_programs import kept_boxes


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """A mask that was found.

  Attributes:
    rle: its COCO run lengths in the image: hundreds of masks of a photo as pixels would take gigabytes.
    area: in pixels.
    box: (x0, y0, x1, y1) in pixels of the image; the last row and column belong to the mask.
    score: predicted IoU.
    stability: see SamAutomaticMaskGenerator.
    point: (x, y) in pixels of the image.
    crop: box of the crop.
  """

  rle: dict[str, Any]
  area: int
  box: tuple[int, int, int, int]
  score: float
  stability: float
  point: tuple[float, float]
  crop: Box


def in_image(mask: np.ndarray, crop: Box, size: tuple[int, int]) -> np.ndarray:
  """The mask bool [h, w] of a crop, in the image of that size."""
  if mask.shape == tuple(size):
    return mask
  x0, y0, x1, y1 = crop
  whole = np.zeros(size, bool)
  whole[y0:y1, x0:x1] = mask
  return whole


def without_regions(found: list[Found], area: float, threshold: float) -> list[Found]:
  """Removes holes and islands smaller than `area`, and the duplicates that result, keeping unchanged masks."""
  cleaned = [_cleaned(each, area) for each in found]
  boxes = np.reshape([each.box for each in cleaned], (-1, 4))
  unchanged = np.array([float(each is before) for each, before in zip(cleaned, found)])
  return [cleaned[i] for i in kept_boxes(boxes, unchanged, threshold)]


def _cleaned(found: Found, area: float) -> Found:
  mask, is_changed = without_small_regions(decode_rle(found.rle), area)
  if not is_changed:
    return found
  return dataclasses.replace(found, rle=encode_rle(mask), area=int(np.count_nonzero(mask)), box=bounds(mask))


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
  """Returns the inclusive box (x0, y0, x1, y1) of `mask` bool [h, w]; zeros if it is empty."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not rows.size:
    return 0, 0, 0, 0
  return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def moved(box: tuple[int, int, int, int], crop: Box) -> tuple[int, int, int, int]:
  """A box in pixels of a crop, in pixels of the image."""
  x0, y0, x1, y1 = box
  return x0 + crop[0], y0 + crop[1], x1 + crop[0], y1 + crop[1]


def record(found: Found, output_mode: str) -> dict[str, Any]:
  """Meta's record. Its boxes are (x, y, width, height); those of `bbox` are a pixel short, as in Meta's code."""
  segmentation: Any = found.rle
  if output_mode == 'binary_mask':
    segmentation = np.ascontiguousarray(decode_rle(found.rle))
  elif output_mode == 'uncompressed_rle':
    segmentation = uncompressed_rle(found.rle)
  return {
    'segmentation': segmentation,
    'area': found.area,
    'bbox': _as_xywh(found.box),
    'predicted_iou': found.score,
    'point_coords': [list(found.point)],
    'stability_score': found.stability,
    'crop_box': _as_xywh(found.crop),
  }


def _as_xywh(box: tuple[int, int, int, int]) -> list[int]:
  x0, y0, x1, y1 = box
  return [x0, y0, x1 - x0, y1 - y0]
