"""Annotation formats and their detection."""

import dataclasses
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ditsam_jax.data.own import coco, folders, parquet, rows, sa2va
from ditsam_jax.data.own.entries import SPLITS, Context, Entry
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean
from ditsam_jax.storage.files import open_regular, parse_json
from ditsam_jax.terminal import printable


@dataclasses.dataclass(frozen=True)
class Format:
  """An annotation format."""

  about: str
  read: Callable[[Context], Iterator[Entry]]


FORMATS = {
  'jsonl': Format('an object with image, text and mask per line', rows.read_json_lines),
  'csv': Format('a table with the columns image, text and mask', rows.read_csv),
  'coco': Format("COCO's instances with sentences", coco.read),
  'sa2va': Format('a list of objects with image, masks and texts', sa2va.read),
  'parquet': Format("RefCOCO's copies on the Hugging Face hub", parquet.read),
  'folder': Format('a folder per split: images, masks (NAME.mask.png) and sentences (NAME.txt)', folders.read),
}


def named(name: str) -> Format:
  """Returns a format by name. Raises UserError if it is unknown."""
  if name not in FORMATS:
    raise UserError(
      f'--format={printable(name)} is unknown; {did_you_mean(name, FORMATS)}choose one of {", ".join(FORMATS)}'
    )
  return FORMATS[name]


def read(name: str, context: Context) -> Iterator[Entry]:
  """Yields the entries of a file or folder. Files in a folder may name their split, such as train.json."""
  reader = named(name).read
  files = _files(context.annotations) if name not in ('parquet', 'folder') else []
  if not files:
    yield from reader(context)
  for file in files:
    split = _split_of(file)
    for entry in reader(dataclasses.replace(context, annotations=file, prefix=f'{file.name} ')):
      # Ids are unique only within a file.
      own = entry.id if entry.id is None else f'{file.stem}/{entry.id}'
      yield dataclasses.replace(entry, place=f'{file.name} {entry.place}', split=entry.split or split, id=own)


def _files(folder: Path) -> list[Path]:
  """Returns the annotation files in a folder; none if `folder` is a file or has no such files."""
  if not folder.is_dir():
    return []
  return sorted(file for file in folder.iterdir() if file.suffix.lower() in ('.jsonl', '.json', '.csv', '.tsv'))


def _split_of(file: Path) -> str | None:
  """Returns the split in a file's name, such as 'val' in instances_val2014.json; None unless there is exactly one."""
  named_there = {split for split in SPLITS if split in re.split('[^A-Za-z]+', file.stem)}
  return named_there.pop() if len(named_there) == 1 else None


def format_of(annotations: Path) -> str:
  """Detects the format of a file or folder from its content. Raises UserError if it is none of FORMATS."""
  if annotations.is_dir():
    if any(annotations.rglob('*.parquet')):
      return 'parquet'
    found = {format_of(file): file for file in _files(annotations)}
    if len(found) > 1:
      listing = ', '.join(f'{printable(file.name)} ({name})' for name, file in found.items())
      raise UserError(f'{printable(annotations)} contains files in several formats: {listing}; expected one format')
    return next(iter(found), 'folder')
  with open_regular(annotations, most_bytes=2**63) as file:
    head = file.read(4)
    if head == b'PAR1':
      return 'parquet'
    file.seek(0)
    first = b''
    while not first.strip() and (line := file.readline(rows.LONGEST_LINE + 1)):
      first = line.removeprefix(b'\xef\xbb\xbf')
    second = file.readline(rows.LONGEST_LINE).strip()
  match first.strip()[:1]:
    case b'[':
      return 'sa2va'
    case b'{':
      return _lines_or_coco(first, second)
  header = first.decode('utf-8', 'replace')
  if {'image', 'text', 'mask'} <= {cell.strip(' "\r\n') for cell in header.split(rows.delimiter_of(header))}:
    return 'csv'
  raise UserError(
    f'{printable(annotations)} is in none of the formats {", ".join(FORMATS)}; see docs/own_data.md, or set --format'
  )


def _lines_or_coco(first: bytes, second: bytes) -> str:
  """Distinguishes JSON lines from a COCO file; both start with an object."""
  try:
    row = parse_json(first, finite=False)
  except ValueError:
    return 'jsonl' if second.startswith(b'{') and first.rstrip().endswith(b'}') else 'coco'
  return 'coco' if isinstance(row, dict) and {'images', 'annotations'} <= set(row) else 'jsonl'
