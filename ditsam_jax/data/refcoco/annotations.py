"""COCO's instances.json, and its masks: polygons, and run lengths (of crowds) in both of COCO's spellings."""

import dataclasses
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from ditsam_jax.data.refcoco import problems
from ditsam_jax.errors import UserError

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
    content = json.loads(file.read_text(encoding='utf-8'), object_hook=compact)
    images = {
      item['id']: ImageInfo(str(item['file_name']), int(item['height']), int(item['width']))
      for item in content['images']
      if item['id'] in image_ids
    }
    annotations = {
      item['id']: Annotation(item['image_id'], item['category_id'], item.get('segmentation'))
      for item in content['annotations']
      if item is not None and item['id'] in annotation_ids
    }
    return Instances(images, annotations, {item['id']: str(item['name']) for item in content['categories']})
  except OSError as error:
    raise UserError(
      f'{file} cannot be read ({error.strerror or error}); expected the instances.json that comes with the refs'
    ) from error
  except (KeyError, TypeError) as error:
    raise UserError(
      f'{file} is not as COCO writes it (at {error}); expected images, annotations and categories with their ids'
    ) from error
  except (ValueError, RecursionError) as error:
    raise UserError(f'{file} is damaged or no JSON ({error}); get a whole copy') from error


def draw(segmentation: Any, height: int, width: int) -> np.ndarray:
  """The mask, bool [height, width]. Raises MaskError when it is missing, malformed or larger than the image."""
  if isinstance(segmentation, dict):
    mask = _draw_runs(segmentation, height, width)
  else:
    mask = _draw_polygons(segmentation or [], height, width)
  if not mask.any():
    raise MaskError(problems.NO_MASK, 'not one pixel')
  return mask


def _compact(segmentation: Any) -> Any:
  if not isinstance(segmentation, list):
    return segmentation
  try:
    return [np.asarray(part, np.float64).reshape(-1) for part in segmentation]
  except (ValueError, TypeError):
    return [np.array([np.nan])]  # reported as malformed when it is drawn


def _draw_polygons(parts: list[np.ndarray], height: int, width: int) -> np.ndarray:
  for part in parts:
    if part.size % 2 or not np.isfinite(part).all():
      raise MaskError(problems.MALFORMED_MASK, 'a polygon that is no list of x, y')
    # Also a guard: time and memory of the drawing grow with the length of the edges.
    points = part.reshape(-1, 2)
    if (points < -_SLACK).any() or (points > np.array([width, height]) + _SLACK).any():
      raise MaskError(problems.LARGE_MASK, f'a polygon leaves the {width} x {height} image')
  # Below three points there is no area, and pycocotools would take two points for a box.
  polygons = [part.tolist() for part in parts if part.size >= 6]
  if not polygons:
    raise MaskError(problems.NO_MASK, 'no polygon')
  return _draw_runs(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)), height, width)


def _draw_runs(runs: dict[str, Any], height: int, width: int) -> np.ndarray:
  """Run lengths are read here and not by pycocotools, which trusts them to add up."""
  counts, size = runs.get('counts'), runs.get('size')
  if not counts:
    raise MaskError(problems.NO_MASK, 'no counts')
  try:
    lengths = np.array(_decompress(counts) if isinstance(counts, str | bytes) else counts, np.int64)
    size = [int(side) for side in size]
  except (ValueError, TypeError, OverflowError) as error:
    raise MaskError(problems.MALFORMED_MASK, str(error)) from error
  if size != [height, width]:
    raise MaskError(problems.LARGE_MASK, f'run lengths of {size}, image of {[height, width]} (height, width)')
  if lengths.ndim != 1 or (lengths < 0).any() or lengths.sum() != height * width:
    raise MaskError(problems.MALFORMED_MASK, f'run lengths that do not add up to {height} x {width} pixels')
  # Background first, then by turns, down the columns.
  return np.repeat(np.arange(lengths.size) % 2 == 1, lengths).reshape(width, height).T


def _decompress(text: str | bytes) -> list[int]:
  """COCO's string of run lengths: five bits a character, lowest first, from the fourth run on as differences."""
  counts: list[int] = []
  value = shift = 0
  for code in text.encode('ascii') if isinstance(text, str) else text:
    bits = code - 48
    if not 0 <= bits < 64 or shift > 40:
      raise ValueError('run lengths with a character that COCO does not write')
    value |= (bits & 31) << shift
    shift += 5
    if bits & 32:
      continue
    if bits & 16:
      value -= 1 << shift
    counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    value = shift = 0
  if shift:
    raise ValueError('run lengths that end amid a number')
  return counts
