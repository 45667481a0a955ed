"""Reads COCO's instances.json with sentences in its annotations."""

from collections.abc import Iterator
from typing import Any

from ditsam_jax.data.own.entries import (
  Context,
  Entry,
  Rejected,
  category_of,
  id_of,
  mask_of,
  path_of,
  shown,
  split_of,
  texts_of,
)
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.masks import compact
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

_MOST_BYTES = 2**30  # COCO's instances_train2014.json has 333 MB
TEXTS = ('sentences', 'caption', 'text', 'noun_phrase')  # the first one present is used
_KNOWN = (*TEXTS, 'id', 'image_id', 'category_id', 'segmentation', 'split', 'bbox', 'area', 'iscrowd')


def read(context: Context) -> Iterator[Entry]:
  """Yields an entry per annotation. Raises UserError if the file is not COCO JSON or an id is ambiguous."""
  # An invalid number makes its polygon malformed, not the file.
  content = read_json(context.annotations, most_bytes=_MOST_BYTES, hook=_compacted, finite=False)
  name = printable(context.annotations)
  if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ('images', 'annotations')):
    raise UserError(f"{name} is not in COCO format; expected an object with lists 'images' and 'annotations'")
  categories = content.get('categories')
  images = _by_id(f'{name}: images', content['images'], ('file_name', 'split', 'height', 'width'))
  classes = _by_id(f'{name}: categories', categories if isinstance(categories, list) else [], ('name',))
  for number, annotation in enumerate(content['annotations']):
    place = f'annotation {number:,}'
    try:
      if not isinstance(annotation, dict):
        raise Rejected(problems.BAD_ENTRY, f'{shown(annotation)}, expected an object')
      entry = _entry(annotation, place, images, classes)
    except Rejected as error:
      context.reject(place, error)
      continue
    context.ignore(annotation, _KNOWN)
    yield entry


def _compacted(item: dict[str, Any]) -> dict[str, Any]:
  """Converts polygons to arrays; as Python numbers they would take a gigabyte."""
  return item | {'segmentation': compact(item['segmentation'])} if item.get('segmentation') else item


def _by_id(where: str, items: list[Any], fields: tuple[str, ...]) -> dict[int | str, dict[str, Any]]:
  """Returns the items by id. Raises UserError if two items with the same id differ in one of `fields`."""
  found: dict[int | str, dict[str, Any]] = {}
  for item in items:
    if not isinstance(item, dict) or not isinstance(item.get('id'), int | str):
      continue
    first = found.setdefault(item['id'], item)
    for field in fields if first is not item else ():
      one, other = first.get(field), item.get(field)
      if not isinstance(one, list | dict) and one != other:  # which are refused per entry
        raise UserError(
          f'{where}: id {shown(item["id"])} twice, with {field} {shown(one)} and {shown(other)}; remove one of them or '
          f'give it another id'
        )
  return found


def _entry(annotation: dict[str, Any], place: str, images: dict, classes: dict) -> Entry:
  image_id, category_id = annotation.get('image_id'), annotation.get('category_id')
  image = images.get(image_id) if isinstance(image_id, int | str) else None
  if image is None:
    raise Rejected(problems.UNKNOWN_IMAGE, f'image_id {shown(image_id)}')
  key = next((key for key in TEXTS if annotation.get(key) is not None), None)
  if key is None:
    raise Rejected(problems.NO_SENTENCE, f'none of {", ".join(TEXTS)}')
  if 'segmentation' not in annotation:
    raise Rejected(problems.NO_MASK, 'no segmentation; write null if the sentences refer to nothing in the image')
  category = classes.get(category_id, {}).get('name') if isinstance(category_id, int | str) else None
  if category_id is not None and classes and category is None:
    raise Rejected(problems.UNKNOWN_CATEGORY, f'category_id {shown(category_id)}')
  split = annotation.get('split')
  return Entry(
    place,
    path_of(image.get('file_name'), 'file_name'),
    sentences_of(annotation[key], key),
    mask_of(annotation['segmentation']),
    split_of(image.get('split') if split is None else split),
    id_of(annotation.get('id')),
    category_of(category),
    size_of(image.get('height'), image.get('width')),
  )


def sentences_of(value: Any, name: str) -> tuple[str, ...]:
  """Returns sentences given as text or in RefCOCO's form: objects with `sent` (cleaned) or `raw`. Raises Rejected."""
  if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
    value = [item.get('sent', item.get('raw')) for item in value]
  return texts_of(value, name)


def size_of(height: Any, width: Any) -> tuple[int, int] | None:
  """Returns an image's height and width, or None unless both are given. Raises Rejected."""
  if height is None or width is None:
    return None
  return _side(height), _side(width)


def _side(value: Any) -> int:
  if isinstance(value, float) and value.is_integer():  # some programs write 480.0
    value = int(value)
  if type(value) is not int or not 0 < value < 2**31:
    raise Rejected(problems.IMAGE_SIZE, f'a side of {shown(value)}')
  return value
