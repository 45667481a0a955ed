"""One entry of any format: an image, sentences, and the mask they refer to."""

import dataclasses
import json
import reprlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.masks import compact
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.terminal import printable

FIELDS = ('image', 'text', 'mask', 'split', 'id', 'category')
SPLITS = ('train', 'val', 'valid', 'validation', 'test', 'testA', 'testB')  # recognised in file names
LONGEST_ID = 200


@dataclasses.dataclass(frozen=True, slots=True)
class Packed:
  """An image inside a Parquet file. Rows with the same bytes become one record."""

  file: str = dataclasses.field(compare=False)
  row: int = dataclasses.field(compare=False)
  column: str = dataclasses.field(compare=False)
  digest: bytes  # of the encoded bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
  """Sentences for one mask of one image, as returned by a format's reader, which does not check paths."""

  place: str  # 'line 7'
  image: str | Packed
  texts: tuple[str, ...]
  mask: Any  # None: no target in the image; str: a PNG's path; polygons; run lengths
  split: str | None = None
  id: str | int | None = None
  category: str = ''
  size: tuple[int, int] | None = None  # height and width of the image, if annotated


class Rejected(ValueError):
  """Raised for an unusable entry; `kind` is a constant of problems.py."""

  def __init__(self, kind: str, reason: str):
    super().__init__(reason)
    self.kind = kind


@dataclasses.dataclass
class Context:
  """A reader's inputs: the paths it reads, and where it reports problems."""

  annotations: Path
  images_dir: Path
  masks_dir: Path
  found: Problems
  say: Callable[[str], None]
  prefix: str = ''  # of places in messages: the file's name, if there are several files
  ignored: dict[str, int] = dataclasses.field(default_factory=dict)  # counts of unknown fields by name
  hinted: set[str] = dataclasses.field(default_factory=set)  # options that hints were shown for

  def reject(self, place: str, error: Rejected) -> None:
    self.found.add(error.kind, f'{self.prefix}{place} ({error})')

  def ignore(self, row: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in row:
      if name not in known:
        self.ignored[name] = self.ignored.get(name, 0) + 1


def entry_of(row: Any, place: str) -> Entry:
  """Returns an entry from an object with FIELDS. Raises Rejected."""
  if not isinstance(row, dict):
    raise Rejected(problems.BAD_ENTRY, f'{shown(row)}; expected an object with image, text and mask')
  for name in ('image', 'text', 'mask'):
    if name not in row:
      raise Rejected(problems.BAD_ENTRY, f"no '{name}'")
  return Entry(
    place,
    path_of(row['image'], 'image'),
    texts_of(row['text'], 'text'),
    mask_of(row['mask']),
    split_of(row.get('split')),
    id_of(row.get('id')),
    category_of(row.get('category')),
  )


def path_of(value: Any, name: str) -> str:
  """Returns the path of a file as written. Raises Rejected."""
  if not isinstance(value, str) or not value:
    raise Rejected(problems.BAD_ENTRY, f"'{name}' is {shown(value)}, expected the path of a file")
  return value


def texts_of(value: Any, name: str) -> tuple[str, ...]:
  """Returns sentences from a sentence or a list of sentences. Raises Rejected."""
  texts = [value] if isinstance(value, str) else value
  if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
    raise Rejected(problems.BAD_ENTRY, f"'{name}' is {shown(value)}, expected a sentence or a list of sentences")
  return tuple(' '.join(text.split()) for text in texts)


def mask_of(value: Any) -> Any:
  """Returns a mask's path, polygons (as arrays), run lengths or None. Raises Rejected."""
  if value is None:
    return None
  if isinstance(value, str):
    return path_of(value, 'mask')
  if isinstance(value, list):
    # A single polygon need not be in a list.
    flat = bool(value) and all(type(number) in (int, float) for number in value)
    return compact([value] if flat else value)
  if isinstance(value, dict):
    return value
  raise Rejected(
    problems.BAD_ENTRY, f"'mask' is {shown(value)}, expected a PNG's path, polygons, run lengths or null (no target)"
  )


def split_of(value: Any) -> str | None:
  """Returns the name of a split, or None. Raises Rejected."""
  if value is None or isinstance(value, str):
    return value or None
  raise Rejected(problems.BAD_SPLIT, f"'split' is {shown(value)}, expected a name, such as train, val or test")


def id_of(value: Any) -> str | int | None:
  """Returns the user's id of the object, or None. Raises Rejected."""
  if value is None or value == '':
    return None
  if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 19 and str(int(value)) == value:
    return int(value)  # CSV cells are text
  if type(value) is int and abs(value) < 2**63 or isinstance(value, str) and len(value) <= LONGEST_ID:
    return value
  raise Rejected(
    problems.BAD_ENTRY, f"'id' is {shown(value)}, expected a whole number or up to {LONGEST_ID} characters"
  )


def category_of(value: Any) -> str:
  """Returns the object's class, '' if not given. Raises Rejected."""
  if value is None:
    return ''
  if type(value) is int or isinstance(value, str) and len(value) <= LONGEST_ID:
    return ' '.join(str(value).split())
  raise Rejected(problems.BAD_ENTRY, f"'category' is {shown(value)}, expected a name")


def shown(value: Any) -> str:
  """Returns a value as shown in messages."""
  if isinstance(value, str | int | float | bool) or value is None:
    try:
      return printable(json.dumps(value, ensure_ascii=False), 60)
    except ValueError:  # an integer too long to print
      return 'a number of thousands of digits'
  return printable(reprlib.repr(value), 60)
