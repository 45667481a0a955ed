"""Reads the official ref files: `refs(<split-by>).p`, a pickle, and gRefCOCO's `grefs(<split-by>).json`."""

import dataclasses
import io
import pickle
import reprlib
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_bytes, read_json
from ditsam_jax.terminal import listed, printable

_MOST_BYTES = 2**28  # official files have up to 60 MB


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
  """The target of some sentences in one image."""

  ref_id: int
  image_id: int
  annotation_ids: tuple[int, ...]  # one; any number in gRefCOCO
  split: str
  expressions: tuple[str, ...]


def refs_file(folder: Path, split_by: str) -> Path:
  """Returns the ref file in a folder. Raises UserError if there is none."""
  candidates = [folder / f'refs({split_by}).p', folder / f'grefs({split_by}).json']
  for file in candidates:
    if file.is_file():
      return file
  there = listed(sorted(path.name for path in folder.glob('*refs(*'))) or 'none'
  raise UserError(
    f'{folder} has no {candidates[0].name} and no {candidates[1].name} (refs there: {there}); '
    f'expected the official download, unpacked'
  )


def read_refs(file: Path) -> list[Ref]:
  """Returns all refs of a file in order. Raises UserError if it is damaged or contains anything else."""
  items = read_json(file, most_bytes=_MOST_BYTES) if file.suffix == '.json' else read_pickle(file)
  if not isinstance(items, list) or not items:
    raise UserError(f'{file} does not hold a list of refs; expected the official download')
  return [_ref(item, f'{file}: ref {index}') for index, item in enumerate(items)]


def read_pickle(file: Path) -> Any:
  """Reads a pickle of plain containers, strings and numbers, by Python 2 or 3. Raises UserError for anything else."""
  try:
    # Python 2 wrote strings as bytes; latin-1 decodes every byte and keeps ASCII.
    return _PlainUnpickler(io.BytesIO(read_bytes(file, most_bytes=_MOST_BYTES)), printable(file.name)).load()
  except UserError:
    raise
  except Exception as error:  # damaged pickles raise almost anything
    raise UserError(f'{file} is damaged or not a pickle ({printable(error)}); get a complete copy') from error


# The private Python implementation: C's keeps its memo in a list as long as the largest index, so one flipped bit can
# allocate tens of gigabytes. Official files take a few seconds.
class _PlainUnpickler(pickle._Unpickler):
  """Builds containers, strings and numbers. Refuses named objects, which could run code."""

  def __init__(self, stream: Any, name: str):
    super().__init__(stream, encoding='latin-1')
    self._name = name

  def find_class(self, module: str, name: str) -> Any:
    if module in ('builtins', '__builtin__') and name in ('set', 'frozenset'):
      return {'set': set, 'frozenset': frozenset}[name]
    if (module, name) == ('_codecs', 'encode'):
      return _latin_1_bytes  # Python 3 writes bytes this way for Python 2
    raise UserError(
      f'{self._name} asks for {printable(module)}.{printable(name)}, which may run code; official refs contain only '
      f'lists, dicts, strings and numbers, so download the file from its authors again'
    )

  def persistent_load(self, pid: Any) -> Any:
    raise UserError(
      f'{self._name} asks for the external object {reprlib.repr(pid)}; official refs contain only lists, dicts, '
      f'strings and numbers, so download the file from its authors again'
    )


def _latin_1_bytes(text: str, encoding: str = 'latin1') -> bytes:
  if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
    raise ValueError(f'bytes written as {reprlib.repr(encoding)}')
  return text.encode('latin-1')


def _ref(item: Any, where: str) -> Ref:
  try:
    # Ignores `file_name`, which has the annotation's id as a suffix.
    annotations = item['ann_id']
    annotations = annotations if isinstance(annotations, list | tuple) else [annotations]
    sentences = tuple(_text(sentence['sent']) for sentence in item['sentences'])
    return Ref(
      _whole(item['ref_id']),
      _whole(item['image_id']),
      tuple(one for one in map(_whole, annotations) if one != -1),
      _text(item['split']),
      sentences,
    )
  except (KeyError, TypeError, ValueError, IndexError) as error:
    reason = printable(f'no {error}' if isinstance(error, KeyError) else error)
    raise UserError(
      f'{where} differs from the official format ({reason}); expected ref_id, image_id, ann_id, split '
      f'and sentences with sent'
    ) from error


def _whole(value: Any) -> int:
  if isinstance(value, bool) or not isinstance(value, int):
    raise ValueError(f'{reprlib.repr(value)} is not a whole number')  # shortened: pickles may nest endlessly
  if not -(2**63) <= value < 2**63:
    raise ValueError('a number of more than 64 bits')
  return value


def _text(value: Any) -> str:
  if isinstance(value, bytes):
    return value.decode('latin-1')
  if not isinstance(value, str):
    raise ValueError(f'{reprlib.repr(value)} is not text')
  value.encode('utf-8')  # raises for lone surrogates, which can be neither printed nor stored
  return value
