"""Atomic writes; reads bytes and JSON from regular files only. Paths are on a disk or in a bucket."""

import codecs
import collections
import contextlib
import errno
import io
import json
import math
import os
import re
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.terminal import printable

MOST_JSON = 2**24  # bytes of a JSON file written by people or by this library; data sets have larger ones
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')

UNFINISHED = r'\.writing-[0-9a-f]{32}'  # temporary files of killed processes


@contextlib.contextmanager
def written_whole(path: AnyPath) -> Iterator[Path]:
  """Yields a temporary local path to write to; its file then replaces `path`, or is deleted after an exception.

  The folder of `path` must exist.

  Raises:
    OSError: writing failed; names `path`, whose old content is kept.
  """
  if isinstance(path, BucketPath):
    with tempfile.TemporaryDirectory() as folder:
      yield Path(folder, path.name)
      bucket.upload({path: Path(folder, path.name)})
    return
  unfinished = path.with_name(f'.writing-{uuid.uuid4().hex}')
  try:
    yield unfinished
    os.replace(unfinished, path)
  except OSError as error:
    raise OSError(error.errno, error.strerror or str(error), str(path)) from error
  finally:
    with contextlib.suppress(OSError):  # the folder itself may be missing
      unfinished.unlink()


def write_text(path: AnyPath, text: str) -> None:
  """Writes a text file atomically, as UTF-8, into an existing folder. Raises OSError that names the file."""
  with written_whole(path) as unfinished:
    unfinished.write_text(text, encoding='utf-8')


def write_json(path: AnyPath, data: Any) -> None:
  """Writes a JSON file atomically into an existing folder. Raises OSError that names the file."""
  write_text(path, json.dumps(data, indent=1) + '\n')


def make_output_folder(folder: AnyPath) -> None:
  """Creates the folder of --output. Raises UserError if it cannot be created or written to."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, ValueError) as error:  # ValueError: an invalid file name
    raise UserError(
      f"output folder '{printable(folder)}' cannot be created ({_reason(error)}); choose another --output"
    ) from error
  if isinstance(folder, BucketPath):
    bucket.check(folder, writes=True)
  elif not os.access(folder, os.W_OK):
    raise UserError(f"output folder '{printable(folder)}' cannot be written to; choose another --output")


def open_regular(path: str | os.PathLike, *, most_bytes: int, name: str = '') -> io.BufferedReader:
  """Opens a regular file for reading, without blocking on pipes or reading devices.

  Args:
    path: the file.
    most_bytes: maximum size.
    name: what error messages call the file, by default its path.

  Raises:
    UserError: the file does not exist, is a folder, pipe or device, cannot be read, or is larger than `most_bytes`.
  """
  name = name or printable(os.fspath(path))
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError as error:
    raise UserError(f'{name}: no such file') from error
  except (OSError, ValueError) as error:  # ValueError: an invalid file name
    if getattr(error, 'errno', None) == errno.ENXIO:
      raise UserError(f'{name}: a pipe or a socket, expected a file') from error
    raise UserError(f'{name}: cannot be read ({_reason(error)}); check the path') from error
  try:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
      kind = 'a folder' if stat.S_ISDIR(status.st_mode) else 'a device or a pipe'
      raise UserError(f'{name}: {kind}, expected a file')
    if status.st_size > most_bytes:
      raise UserError(f'{name}: {status.st_size:,} bytes, expected at most {most_bytes:,}')
    return os.fdopen(descriptor, 'rb')
  except BaseException:
    os.close(descriptor)
    raise


def read_bytes(path: str | os.PathLike, *, most_bytes: int) -> bytes:
  """Reads a regular file, or an object of a bucket. Raises UserError like `open_regular`."""
  try:
    if isinstance(path, BucketPath):
      entry = bucket.info(path)
      if entry is None or entry.size > most_bytes:
        found = 'no such file' if entry is None else f'{entry.size:,} bytes, expected at most {most_bytes:,}'
        raise UserError(f'{printable(path)}: {found}')
      return bucket.read(path)
    with open_regular(path, most_bytes=most_bytes) as file:
      return file.read(most_bytes)
  except OSError as error:
    raise UserError(f'{printable(os.fspath(path))}: cannot be read ({_reason(error)})') from error


def read_json(
  path: str | os.PathLike,
  *,
  most_bytes: int = MOST_JSON,
  hook: Callable[[dict[str, Any]], Any] | None = None,
  finite: bool = True,
) -> Any:
  """Reads JSON from a regular file as plain containers.

  Args:
    path: the file.
    most_bytes: maximum size; larger files are refused unread.
    hook: called with each parsed object; its result replaces the object.
    finite: refuse NaN and numbers out of float64's range. False accepts them, and takes two thirds of the time for
      millions of numbers; the caller must then check.

  Raises:
    UserError: see `open_regular`; also if the file is not UTF-8 or not JSON, is nested too deeply, or contains
      duplicate keys, invalid Unicode, NaN, or numbers out of range.
  """
  try:
    data = read_bytes(path, most_bytes=most_bytes).removeprefix(codecs.BOM_UTF8)  # as Windows' programs write
    return parse_json(data, hook=hook, finite=finite)
  except ValueError as error:
    raise UserError(f'{printable(os.fspath(path))} {error}; get a complete copy') from error


def parse_json(data: bytes, *, hook: Callable[[dict[str, Any]], Any] | None = None, finite: bool = True) -> Any:
  """Parses JSON into plain containers; for `hook` and `finite` see `read_json`.

  Raises:
    ValueError: invalid JSON; the message continues a sentence: 'is nested too deeply'.
  """

  def unique(pairs: list[tuple[str, Any]]) -> Any:
    item = dict(pairs)
    if len(item) < len(pairs):
      twice = next(key for key, number in collections.Counter(key for key, _ in pairs).items() if number > 1)
      raise ValueError(f'an object has the key {twice!r} twice')
    return hook(item) if hook else item

  checks: dict[str, Any] = {'parse_constant': _refuse_constant, 'parse_float': _finite} if finite else {}
  suspicious = _SURROGATE.search(data) is not None
  try:
    content = json.loads(data.decode('utf-8'), object_pairs_hook=unique, **checks)
    if suspicious:  # fails on lone surrogates, which can be neither printed nor stored
      json.dumps(content, ensure_ascii=False, default=str).encode('utf-8')
    return content
  except UnicodeDecodeError as error:
    raise ValueError(f'is not UTF-8 text (byte {error.start}), expected JSON') from error
  except UnicodeEncodeError as error:
    raise ValueError('holds text that is not valid Unicode (a lone surrogate)') from error
  except RecursionError as error:
    raise ValueError('is nested too deeply') from error
  except json.JSONDecodeError as error:
    several = '\n' in error.doc
    place = f'line {error.lineno} column {error.colno}' if several else f'character {error.colno}'
    raise ValueError(f'is damaged or not JSON ({error.msg}: {place})') from error
  except ValueError as error:
    raise ValueError(f'is not valid JSON: {printable(error)}') from error


def _refuse_constant(text: str) -> float:
  raise ValueError(f'{text} is not a number')


def _finite(text: str) -> float:
  number = float(text)
  if math.isinf(number):
    raise ValueError(f'the number {text[:40]} is too large')
  return number


def _reason(error: Exception) -> str:
  return getattr(error, 'strerror', None) or printable(error)
