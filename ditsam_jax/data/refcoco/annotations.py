"""COCO's instances.json, and its masks: polygons, and run lengths (of crowds) in both of COCO's spellings."""

import dataclasses
import reprlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ditsam_jax.data.refcoco import problems
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import decode_rle
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

_MOST_BYTES = 2**30  # COCO's own instances_train2014.json has 333 MB
_MOST_STEPS = 2**24  # fifths of a pixel along all edges of a mask: pycocotools keeps each, at 24 bytes

_SLACK = 5.0  # pixels by which a polygon may leave its image: some annotators overshoot the border, and are cut there


class MaskError(ValueError):
  """A mask that cannot be drawn; `kind` is one of problems.py."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
  """What instances.json knows of an image."""

  file_name: str
  height: int
  width: int


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
  """One object. Its segmentation: float64 [2 n] polygons, a dict of run lengths, or None."""

  image_id: int
  category_id: int
  segmentation: list[np.ndarray] | dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Instances:
  """The part of an instances.json that was asked for."""

  images: dict[int, ImageInfo]
  annotations: dict[int, Annotation]
  categories: dict[int, str]


def read_instances(file: Path, image_ids: Collection[int], annotation_ids: Collection[int]) -> Instances:
  """Those images and annotations. Raises UserError when the file is damaged or of another format.

  What is not asked for is dropped while parsing, and polygons become arrays: as Python numbers they would take
  a gigabyte.
  """

  def compact(item: dict[str, Any]) -> Any:
    if 'segmentation' not in item:
      return item
    if item.get('id') not in annotation_ids:
      return None
    return item | {'segmentation': _compact(item['segmentation'])}

  try:
    # Polygons with numbers that are none are problems of theirs, not of the file.
    content = read_json(file, most_bytes=_MOST_BYTES, hook=compact, finite=False)
    images = {
      item['id']: ImageInfo(_text(item['file_name']), _whole(item['height']), _whole(item['width']))
      for item in content['images']
      if item['id'] in image_ids
    }
    annotations = {
      item['id']: Annotation(_whole(item['image_id']), _whole(item['category_id']), item.get('segmentation'))
      for item in content['annotations']
      if item is not None and item['id'] in annotation_ids
    }
    categories = {_whole(item['id']): _text(item['name']) for item in content['categories']}
    return Instances(images, annotations, categories)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f'{file} is not in COCO format (at {printable(error)}); expected images, annotations and categories with '
      f'their ids'
    ) from error


def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
  """The mask, bool [height, width]. Raises MaskError when it is missing, malformed or larger than the image."""
  if isinstance(segmentation, dict):
    mask = _draw_runs(segmentation, height, width)
  elif segmentation is None or isinstance(segmentation, list):
    mask = _draw_polygons(segmentation or [], height, width)
  else:
    raise MaskError(problems.MALFORMED_MASK, f'{reprlib.repr(segmentation)} is neither polygons nor run lengths')
  if not mask.any():
    raise MaskError(problems.NO_MASK, 'no pixels')
  return mask


def _compact(segmentation: Any) -> Any:
  if not isinstance(segmentation, list):
    return segmentation
  try:
    return [np.asarray(part, np.float64).reshape(-1) for part in segmentation]
  except (ValueError, TypeError, OverflowError):
    return [np.array([np.nan])]  # reported as malformed when it is drawn


def _draw_polygons(parts: list[np.ndarray], height: int, width: int) -> np.ndarray:
  for part in parts:
    if part.size % 2 or not np.isfinite(part).all():
      raise MaskError(problems.MALFORMED_MASK, 'a polygon that is not a list of x, y')
    # Also a guard: time and memory of the drawing grow with the length of the edges.
    points = part.reshape(-1, 2)
    if (points < -_SLACK).any() or (points > np.array([width, height]) + _SLACK).any():
      raise MaskError(problems.LARGE_MASK, f'a polygon leaves the {width} x {height} image')
  steps = sum(np.abs(np.diff(part.reshape(-1, 2), axis=0)).max(1).sum() * 5 + part.size for part in parts if part.size)
  if steps > _MOST_STEPS:
    raise MaskError(problems.MALFORMED_MASK, f'polygons whose edges are {steps / 5:,.0f} pixels long')
  # Below three points there is no area, and pycocotools would take two points for a box.
  polygons = [part.tolist() for part in parts if part.size >= 6]
  if not polygons:
    raise MaskError(problems.NO_MASK, 'no polygon')
  return _draw_runs(dict(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))), height, width)


def _draw_runs(runs: dict[str, Any], height: int, width: int) -> np.ndarray:
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


def _whole(value: Any) -> int:
  """A number of an id, a height, a width; some programs write 480.0."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
    raise ValueError(f'{reprlib.repr(value)}, expected a whole number')
  return value


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(f'{reprlib.repr(value)}, expected text')
  return value
