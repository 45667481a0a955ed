"""Arguments of automatic mask generation and their checks; names and defaults are Meta's."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.point_grids import point_grids

OUTPUT_MODES = ('binary_mask', 'uncompressed_rle', 'coco_rle')
MOST_POINTS_PER_SIDE = 1024
MOST_CROP_LAYERS = 6  # the last one has 4,096 crops


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskSettings:
  """Arguments of SamAutomaticMaskGenerator, described there. Raises UserError if one is invalid."""

  points_per_side: int | None = 32
  points_per_batch: int = 64
  pred_iou_thresh: float = 0.88
  stability_score_thresh: float = 0.95
  stability_score_offset: float = 1.0
  box_nms_thresh: float = 0.7
  crop_n_layers: int = 0
  crop_nms_thresh: float = 0.7
  crop_overlap_ratio: float = 512 / 1500
  crop_n_points_downscale_factor: int = 1
  point_grids: Sequence[Any] | None = None
  min_mask_region_area: int = 0
  output_mode: str = 'binary_mask'

  def __post_init__(self):
    if (self.points_per_side is None) == (self.point_grids is None):
      raise UserError(
        f'points_per_side {self.points_per_side} with point_grids '
        f'{"given" if self.point_grids is not None else "None"}: expected one of the two; pass points_per_side=None '
        'with point_grids'
      )
    if self.points_per_side is not None:
      self._whole('points_per_side', 1, MOST_POINTS_PER_SIDE)
    self._whole('points_per_batch', 1, 65_536)
    self._whole('crop_n_layers', 0, MOST_CROP_LAYERS)
    self._whole('crop_n_points_downscale_factor', 1, MOST_POINTS_PER_SIDE)
    self._number('min_mask_region_area', 0, math.inf)
    for name in ('pred_iou_thresh', 'stability_score_thresh', 'stability_score_offset'):
      self._number(name, -math.inf, math.inf)
    for name in ('box_nms_thresh', 'crop_nms_thresh'):
      self._number(name, 0, math.inf)
    self._number('crop_overlap_ratio', 0, 1)
    if self.output_mode not in OUTPUT_MODES:
      raise UserError(f'output_mode {self.output_mode!r}: expected one of {", ".join(OUTPUT_MODES)}')
    self.grids()

  def grids(self) -> list[np.ndarray]:
    """Returns point grids, (x, y) on 0..1, for the image and the crops of each layer: f64 [N, 2] each, N at least 1."""
    if self.points_per_side is None:
      return self._own_grids()
    fewest = int(self.points_per_side / self.crop_n_points_downscale_factor**self.crop_n_layers)
    if fewest < 1:
      raise UserError(
        f'points_per_side {self.points_per_side}, {self.crop_n_layers} crop layers and a downscale factor of '
        f'{self.crop_n_points_downscale_factor}: no points are left in the last layer; use more points or fewer layers'
      )
    return point_grids(self.points_per_side, self.crop_n_layers, self.crop_n_points_downscale_factor)

  def _own_grids(self) -> list[np.ndarray]:
    assert self.point_grids is not None  # see __post_init__
    expected = 'a list of arrays [N, 2], (x, y) on 0..1, one for the image and one for each crop layer'
    try:
      grids = [np.asarray(grid, np.float64) for grid in self.point_grids]
    except (TypeError, ValueError) as error:
      raise UserError(f'point_grids: not arrays of numbers ({error}); expected {expected}') from error
    if len(grids) <= self.crop_n_layers:
      raise UserError(f'{len(grids)} point_grids with {self.crop_n_layers} crop layers: expected {expected}')
    for grid in grids:
      if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
        raise UserError(f'point_grids: an array of shape {grid.shape}; expected {expected}')
      if not ((grid >= 0) & (grid <= 1)).all():
        raise UserError(f'point_grids: a coordinate outside 0..1; expected {expected}')
    return grids

  def _whole(self, name: str, least: int, most: int) -> None:
    value = getattr(self, name)
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or not least <= value <= most:
      raise UserError(f'{name} {value!r}: expected a whole number from {least} to {most:,}')

  def _number(self, name: str, least: float, most: float) -> None:
    value = getattr(self, name)
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
      bounds = {-math.inf: 'a number', 0: 'a number of at least 0'}[least] if math.isinf(most) else '0 to 1'
      raise UserError(f'{name} {value!r}: expected {bounds}')
