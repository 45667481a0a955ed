"""The formats, and how a file tells which one it has."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

from ditsam_jax.data.own import coco, folders, parquet, rows, sa2va
from ditsam_jax.data.own.entries import Context, Entry
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean
from ditsam_jax.storage.files import open_regular, parse_json
from ditsam_jax.terminal import printable


@dataclasses.dataclass(frozen=True)
class Format:
  """One way to write annotations down."""

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
  """A format by name. Raises UserError."""
  if name not in FORMATS:
    raise UserError(
      f'--format={printable(name)} is unknown; {did_you_mean(name, FORMATS)}choose one of {", ".join(FORMATS)}'
    )
  return FORMATS[name]


def format_of(annotations: Path) -> str:
  """The name of the format of a file or folder, by its content. Raises UserError where it has none of FORMATS."""
  if annotations.is_dir():
    return 'parquet' if any(annotations.rglob('*.parquet')) else 'folder'
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
    f'{printable(annotations)} is in none of the formats {", ".join(FORMATS)}; see docs/own_data.md, or name its '
    f'format with --format'
  )


def _lines_or_coco(first: bytes, second: bytes) -> str:
  """A file that begins with an object holds one a line, or is one."""
  try:
    row = parse_json(first, finite=False)
  except ValueError:
    return 'jsonl' if second.startswith(b'{') and first.rstrip().endswith(b'}') else 'coco'
  return 'coco' if isinstance(row, dict) and {'images', 'annotations'} <= set(row) else 'jsonl'
