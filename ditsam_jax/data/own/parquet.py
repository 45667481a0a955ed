"""Reads Parquet files with the columns of RefCOCO's copies on the Hugging Face hub, with images inside or as paths."""

import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditsam_jax.data.own.coco import sentences_of, size_of
from ditsam_jax.data.own.entries import (
  SPLITS,
  Context,
  Entry,
  Packed,
  Rejected,
  category_of,
  id_of,
  mask_of,
  path_of,
  split_of,
)
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.images import MOST_BYTES, ImageError
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular, parse_json
from ditsam_jax.terminal import listed, printable

_BATCH = 64  # rows in memory
_DEPTH = 20  # maximum number of leading folders removed from a path
_MOST_ROW_GROUP = 2**32  # bytes; all images of a row group are in memory at once
# Column names; the first one present is used. lmms-lab's `answer` holds the sentences; its `question` is constant.
_TEXTS = ('sentences', 'answer', 'captions', 'caption', 'text')
_MASKS = ('raw_anns', 'segmentation', 'mask')
_IDS = ('ref_id', 'question_id', 'id')
_OTHERS = ('split', 'category', 'raw_image_info', 'iscrowd')
_HUB_NAME = re.compile(r'([A-Za-z][A-Za-z0-9_]*)-\d{5}-of-\d{5}.*')  # val-00000-of-00004.parquet


def read(context: Context) -> Iterator[Entry]:
  """Yields an entry per row. Raises UserError if a file is damaged or lacks the columns."""
  given = context.annotations
  files = sorted(given.rglob('*.parquet')) if given.is_dir() else [given]
  prefix: dict[str, str] = {}
  for file in files:
    for entry in _rows(file, context):
      yield entry if isinstance(entry.image, Packed) else _under(entry, prefix, context)


def packed_bytes(packed: Packed) -> bytes:
  """Returns the bytes of an image inside a Parquet file. Raises ImageError."""
  try:
    group, first = _row_group(packed.file, packed.row)
    value = _images(packed.file, packed.column, group)[packed.row - first].as_py()
    return value['bytes']
  except MemoryError:  # pyarrow's is one too
    raise
  except Exception as error:  # pyarrow raises many kinds on damaged data
    raise ImageError(problems.UNREADABLE, f'row {packed.row:,} ({printable(error, 100)})') from error


@functools.lru_cache(1)
def _images(file: str, column: str, group: int) -> Any:
  return _open(Path(file)).read_row_group(group, columns=[column]).column(column)


def _row_group(file: str, row: int) -> tuple[int, int]:
  """Returns the row group of a row and the first row of that group."""
  first = 0
  for group, number in enumerate(_group_sizes(file)):
    if row < first + number:
      return group, first
    first += number
  raise ValueError('no such row')


@functools.lru_cache(64)
def _group_sizes(file: str) -> tuple[int, ...]:
  metadata = _open(Path(file)).metadata
  return tuple(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))


def _open(file: Path) -> Any:
  try:
    from pyarrow import parquet
  except ImportError as error:
    raise UserError(
      f"{printable(file)}: reading Parquet needs pyarrow; run pip install 'ditsam_jax[parquet]'"
    ) from error
  open_regular(file, most_bytes=2**63).close()
  try:
    table = parquet.ParquetFile(file, thrift_string_size_limit=2**26, thrift_container_size_limit=2**20)
    groups = (table.metadata.row_group(group).total_byte_size for group in range(table.metadata.num_row_groups))
    largest = max(groups, default=0)
  except Exception as error:  # pyarrow raises many kinds on damaged data
    raise UserError(f'{printable(file)} is damaged or not Parquet ({printable(error, 100)})') from error
  if largest > _MOST_ROW_GROUP:
    raise UserError(
      f'{printable(file)}: a row group of {largest:,} bytes, expected at most {_MOST_ROW_GROUP:,}; write it with fewer '
      f'rows per group'
    )
  return table


def _rows(file: Path, context: Context) -> Iterator[Entry]:
  table = _open(file)
  columns = table.schema_arrow.names
  chosen = {
    role: next((name for name in names if name in columns), None)
    for role, names in (('text', _TEXTS), ('mask', _MASKS), ('id', _IDS))
  }
  image = _image_column(table.schema_arrow)
  if not chosen['text'] or not chosen['mask'] or not image:
    raise UserError(
      f'{printable(file)} has the columns {listed(columns, 20)}; expected images (image with bytes, or image_path), '
      f'sentences ({", ".join(_TEXTS)}) and masks ({", ".join(_MASKS)})'
    )
  needed = [name for name in (*chosen.values(), image, *_OTHERS) if name in columns]
  number = 0
  try:
    for batch in table.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(needed))):
      for row in batch.to_pylist():
        place = f'{file.name} row {number:,}'
        number += 1
        try:
          yield _entry(row, place, file, number - 1, chosen, image)
        except Rejected as error:
          context.reject(place, error)
  except (UserError, MemoryError):
    raise
  except Exception as error:  # pyarrow raises many kinds on damaged data
    raise UserError(f'{printable(file)} is damaged at row {number:,} ({printable(error, 100)})') from error


def _image_column(schema: Any) -> str | None:
  names = schema.names
  if 'image' in names and 'bytes' in str(schema.field('image').type):
    return 'image'
  return 'image_path' if 'image_path' in names else None


def _entry(row: dict[str, Any], place: str, file: Path, number: int, chosen: dict[str, Any], image: str) -> Entry:
  info = _json(row.get('raw_image_info'), 'raw_image_info') or {}
  size = size_of(info.get('height'), info.get('width'))
  if image == 'image':
    value = row['image']
    data = value.get('bytes') if isinstance(value, dict) else None
    if not data:
      raise Rejected(problems.BAD_ENTRY, "'image' holds no bytes")
    if len(data) > MOST_BYTES:
      raise Rejected(problems.UNREADABLE, f'an image of {len(data):,} bytes')
    where: str | Packed = Packed(str(file), number, 'image', hashlib.blake2b(data, digest_size=16).digest())
  else:
    where = path_of(row['image_path'], 'image_path')
  split = split_of(row.get('split')) or _split_of_file(file)
  own = row.get(chosen['id']) if chosen['id'] else None
  return Entry(
    place, where, sentences_of(row[chosen['text']], chosen['text']), _mask(row, chosen['mask']), split, id_of(own),
    category_of(row.get('category')), size,
  )  # fmt: skip


def _mask(row: dict[str, Any], name: str) -> Any:
  value = row[name]
  if name == 'raw_anns':
    value = (_json(value, name) or {}).get('segmentation')
  if value is None:
    raise Rejected(problems.NO_MASK, f'no {name}')
  if isinstance(value, list) and row.get('iscrowd') and name == 'segmentation':
    raise Rejected(problems.MALFORMED_MASK, 'a crowd mask: run lengths without a size')
  return mask_of(value)


def _json(value: Any, name: str) -> dict[str, Any] | None:
  if value is None:
    return None
  try:
    content = parse_json(value.encode('utf-8') if isinstance(value, str) else b'', finite=False)
  except (ValueError, UnicodeEncodeError) as error:
    raise Rejected(problems.BAD_ENTRY, f"'{name}' {error}") from error
  if not isinstance(content, dict):
    raise Rejected(problems.BAD_ENTRY, f"'{name}' is not an object")
  return content


def _split_of_file(file: Path) -> str | None:
  """Infers the split from the hub's file name or folder, if possible."""
  if match := _HUB_NAME.fullmatch(file.stem):
    return match[1]
  return next((name for name in (file.stem, file.parent.name) if name in SPLITS), None)


def _under(entry: Entry, prefix: dict[str, str], context: Context) -> Entry:
  """Returns the entry with its image's path relative to the images folder.

  The hub's copies say coco/train2014/NAME.jpg, wherever the user keeps train2014. The first path of each folder
  determines the prefix to remove.
  """
  assert isinstance(entry.image, str)
  folder, _, _ = entry.image.rpartition('/')
  if folder not in prefix:
    parts = entry.image.split('/')
    here = context.images_dir
    ends = ['/'.join(parts[start:]) for start in range(min(len(parts), _DEPTH))]
    found = next((end for end in ends if '..' not in parts and os.path.isfile(here / end)), entry.image)
    prefix[folder] = entry.image[: len(entry.image) - len(found)]
    if prefix[folder]:
      context.say(f'image paths: without {printable(prefix[folder])}, to match {printable(here)}')
  image = entry.image.removeprefix(prefix[folder])
  return dataclasses.replace(entry, image=image)
