"""Reads Sa2VA's fine-tuning annotations: [{"image": ..., "mask": [mask, ...], "text": [sentence, ...]}, ...]."""

from collections.abc import Iterator
from typing import Any

from ditsam_jax.data.own.entries import (
  FIELDS,
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
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

_MOST_BYTES = 2**30


def read(context: Context) -> Iterator[Entry]:
  """Yields an entry per pair of mask and text. Raises UserError if the file is in another format."""
  content = read_json(context.annotations, most_bytes=_MOST_BYTES, finite=False)
  if not isinstance(content, list):
    raise UserError(
      f'{printable(context.annotations)} is not in Sa2VA format; expected a list of objects with image, mask and text'
    )
  for number, item in enumerate(content):
    place = f'item {number:,}'
    try:
      entries = list(_entries(item, place))
    except Rejected as error:
      context.reject(place, error)
      continue
    context.ignore(item, FIELDS)
    yield from entries


def _entries(item: Any, place: str) -> Iterator[Entry]:
  if not isinstance(item, dict):
    raise Rejected(problems.BAD_ENTRY, f'{shown(item)}, expected an object with image, mask and text')
  for name in ('image', 'mask', 'text'):
    if name not in item:
      raise Rejected(problems.BAD_ENTRY, f"no '{name}'")
  texts, masks = item['text'], item['mask']
  if not isinstance(texts, list) or not isinstance(masks, list) or len(texts) != len(masks):
    raise Rejected(
      problems.BAD_ENTRY,
      f"'mask' and 'text' are {_length(masks)} and {_length(texts)}, expected two lists of the same length",
    )
  image, split, category = (
    path_of(item['image'], 'image'),
    split_of(item.get('split')),
    category_of(item.get('category')),
  )
  own = id_of(item.get('id'))
  for index, (text, mask) in enumerate(zip(texts, masks)):
    yield Entry(
      f'{place} mask {index}',
      image,
      texts_of(text, 'text'),
      mask_of(mask),
      split,
      own if own is None or len(texts) == 1 else f'{own}/{index}',
      category,
    )


def _length(value: Any) -> str:
  return f'a list of {len(value):,}' if isinstance(value, list) else shown(value)
