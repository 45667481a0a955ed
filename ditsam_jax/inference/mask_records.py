"""Converts masks to Meta's records; removes small regions and the duplicates that this creates."""

import dataclasses
from typing import Any

import numpy as np

from ditsam_jax.geometry.masks import encode_rle, uncompressed_rle, without_small_regions
from ditsam_jax.geometry.point_grids import Box
from ditsam_jax.inference.mask_programs import kept_boxes


@dataclasses.dataclass(frozen=True, eq=False)
class Found:
  """A mask found in an image.

  Attributes:
    mask: bool [h, w], at the crop's size.
    box: (x0, y0, x1, y1) in pixels of the image, all inclusive.
    score: predicted IoU.
    stability: see SamAutomaticMaskGenerator.
    point: (x, y) in pixels of the image.
    crop: the crop's box in the image.
  """

  mask: np.ndarray
  box: tuple[int, int, int, int]
  score: float
  stability: float
  point: tuple[float, float]
  crop: Box

  def whole(self, size: tuple[int, int]) -> np.ndarray:
    """Returns the mask at the image's size, bool [h, w]."""
    x0, y0, x1, y1 = self.crop
    if self.mask.shape == tuple(size):
      return self.mask
    mask = np.zeros(size, bool)
    mask[y0:y1, x0:x1] = self.mask
    return mask


def without_regions(found: list[Found], size: tuple[int, int], area: float, threshold: float) -> list[Found]:
  """Removes holes and islands smaller than `area`, then duplicates; of duplicates, an unchanged mask is kept."""
  changed, unchanged, boxes = [], [], []
  for each in found:
    mask, is_changed = without_small_regions(each.whole(size), area)
    box = bounds(mask)
    changed.append(dataclasses.replace(each, mask=mask, box=box, crop=each.crop) if is_changed else each)
    unchanged.append(float(not is_changed))
    boxes.append(box)
  kept = kept_boxes(np.reshape(boxes, (-1, 4)), np.array(unchanged), threshold)
  return [changed[i] for i in kept]


def bounds(mask: np.ndarray) -> tuple[int, int, int, int]:
  """Returns the inclusive box (x0, y0, x1, y1) of `mask` bool [h, w]; zeros if it is empty."""
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  if not rows.size:
    return 0, 0, 0, 0
  return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def record(found: Found, size: tuple[int, int], output_mode: str) -> dict[str, Any]:
  """Returns Meta's record. Boxes are (x, y, width, height); as in Meta's code, `bbox` ends at the last pixel."""
  mask = found.whole(size)
  segmentation: Any = mask
  if output_mode == 'coco_rle':
    segmentation = encode_rle(mask)
  elif output_mode == 'uncompressed_rle':
    segmentation = uncompressed_rle(mask)
  return {
    'segmentation': segmentation,
    'area': int(np.count_nonzero(mask)),
    'bbox': _as_xywh(found.box),
    'predicted_iou': found.score,
    'point_coords': [list(found.point)],
    'stability_score': found.stability,
    'crop_box': _as_xywh(found.crop),
  }


def _as_xywh(box: tuple[int, int, int, int]) -> list[int]:
  x0, y0, x1, y1 = box
  return [x0, y0, x1 - x0, y1 - y0]
