"""Reads COCO's instances.json."""

import dataclasses
import reprlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ditsam_jax.data.preparation.masks import compact as compact_polygons
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

_Item = TypeVar('_Item')

_MOST_BYTES = 2**30  # COCO's instances_train2014.json has 333 MB


@dataclasses.dataclass(frozen=True, slots=True)
class ImageInfo:
  """An image in instances.json."""

  file_name: str
  height: int
  width: int


@dataclasses.dataclass(frozen=True, slots=True)
class Annotation:
  """An object; its segmentation is float64 [2 n] polygons, a dict of run lengths, or None."""

  image_id: int
  category_id: int
  segmentation: list[np.ndarray] | dict[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Instances:
  """The requested part of an instances.json."""

  images: dict[int, ImageInfo]
  annotations: dict[int, Annotation]
  categories: dict[int, str]


def read_instances(file: Path, image_ids: Collection[int], annotation_ids: Collection[int]) -> Instances:
  """Returns the requested images and annotations. Raises UserError if the file is damaged or in another format.

  Drops other annotations while parsing and converts polygons to arrays; as Python numbers they would take a gigabyte.
  """

  def compact(item: dict[str, Any]) -> Any:
    if 'segmentation' not in item:
      return item
    if item.get('id') not in annotation_ids:
      return None
    return item | {'segmentation': compact_polygons(item['segmentation'])}

  try:
    # An invalid number makes its polygon malformed, not the file.
    content = read_json(file, most_bytes=_MOST_BYTES, hook=compact, finite=False)
    images = (
      (item['id'], ImageInfo(_text(item['file_name']), _whole(item['height']), _whole(item['width'])))
      for item in content['images']
      if item['id'] in image_ids
    )
    annotations = (
      (item['id'], Annotation(_whole(item['image_id']), _whole(item['category_id']), item.get('segmentation')))
      for item in content['annotations']
      if item is not None and item['id'] in annotation_ids
    )
    categories = ((_whole(item['id']), _text(item['name'])) for item in content['categories'])
    return Instances(
      _by_id(file, 'images', images), _by_id(file, 'annotations', annotations), _by_id(file, 'categories', categories)
    )
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    raise UserError(
      f'{file} is not in COCO format (at {printable(error)}); expected images, annotations and categories with ids'
    ) from error


def _by_id(file: Path, kind: str, items: Iterable[tuple[int, _Item]]) -> dict[int, _Item]:
  """Returns the items by id. Raises UserError if two different ones have the same id."""
  found: dict[int, _Item] = {}
  for number, item in items:
    first = found.setdefault(number, item)
    if first is not item and _comparable(first) != _comparable(item):
      raise UserError(f'{file} has two {kind} with id {number}, which differ; remove one of them, or renumber it')
  return found


def _comparable(item: Any) -> Any:
  polygons = getattr(item, 'segmentation', None)
  if not isinstance(polygons, list):
    return item
  return dataclasses.replace(item, segmentation=[np.asarray(polygon).tolist() for polygon in polygons])


def _whole(value: Any) -> int:
  """Returns an id, height or width as an integer; some programs write 480.0."""
  if isinstance(value, float) and value.is_integer():
    value = int(value)
  if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
    raise ValueError(f'{reprlib.repr(value)}, expected a whole number')
  return value


def _text(value: Any) -> str:
  if not isinstance(value, str):
    raise ValueError(f'{reprlib.repr(value)}, expected text')
  return value
