"""Atomic writes; reads bytes and JSON from regular files only."""

import collections
import contextlib
import errno
import io
import json
import math
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

MOST_JSON = 2**24  # bytes of a JSON file that people or this library write; data sets have larger ones
_SURROGATE = re.compile(rb'\\u[dD][89a-fA-F]')

_QUIET = 6  # times in a row that a folder stays away
UNFINISHED = r'\.writing-[0-9a-f]{32}'  # names of what a killed process leaves


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """A temporary path to write to; its file replaces `path` at the end, or is deleted after an exception.

  Raises:
    OSError: names `path`, whose old content is still there.
  """
  unfinished = path.with_name(f'.writing-{uuid.uuid4().hex}')
  try:
    yield unfinished
    os.replace(unfinished, path)
  except OSError as error:
    raise OSError(error.errno, error.strerror or str(error), str(path)) from error
  finally:
    with contextlib.suppress(OSError):  # the folder itself may be missing
      unfinished.unlink()


def write_text(path: Path, text: str) -> None:
  """Writes a file atomically. Raises OSError, which names the file."""
  with written_whole(path) as unfinished:
    unfinished.write_text(text)


def write_json(path: Path, data: Any) -> None:
  """Writes JSON atomically. Raises OSError, which names the file."""
  write_text(path, json.dumps(data, indent=1) + '\n')


def remove_for_good(folder: Path) -> None:
  """Removes a folder to which a library's threads may still add after they have failed: TensorStore makes it anew."""
  absent = 0 if folder.exists() else _QUIET
  for _ in range(100):
    if absent == _QUIET:
      return
    absent = 0 if folder.exists() else absent + 1
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.05)


def open_regular(path: str | os.PathLike, *, most_bytes: int, name: str = '') -> io.BufferedReader:
  """Opens a regular file for reading, never waiting for a pipe or reading a device.

  Raises:
    UserError: no such file, a folder, a pipe, a device, not readable, larger than `most_bytes`; it starts with `name`,
      by default the path.
  """
  name = name or printable(os.fspath(path))
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
  except FileNotFoundError as error:
    raise UserError(f'{name}: no such file') from error
  except (OSError, ValueError) as error:  # ValueError: a name that no file can have
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
  """All bytes of a regular file. Raises UserError as `open_regular` does."""
  try:
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
  """JSON of a regular file as plain containers.

  Args:
    path: the file.
    most_bytes: a larger file is refused unread.
    hook: takes every object as it is parsed; what it returns takes the object's place.
    finite: refuse NaN and numbers that float64 cannot hold. False lets them through, in two thirds of the time where
      there are millions of numbers; the caller then checks.

  Raises:
    UserError: as in `open_regular`; not UTF-8, no JSON, nested too deeply, an object that names a key twice, text that
      is no Unicode, NaN or numbers out of range.
  """
  try:
    return parse_json(read_bytes(path, most_bytes=most_bytes), hook=hook, finite=finite)
  except ValueError as error:
    raise UserError(f'{printable(os.fspath(path))} {error}; get a complete copy') from error


def parse_json(data: bytes, *, hook: Callable[[dict[str, Any]], Any] | None = None, finite: bool = True) -> Any:
  """JSON as plain containers; `hook` and `finite` as of `read_json`.

  Raises:
    ValueError: what is wrong, in words that follow a name: 'is nested too deeply'.
  """

  def unique(pairs: list[tuple[str, Any]]) -> Any:
    item = dict(pairs)
    if len(item) < len(pairs):
      twice = next(key for key, number in collections.Counter(key for key, _ in pairs).items() if number > 1)
      raise ValueError(f'an object has the key {twice!r} twice')
    return hook(item) if hook else item

  checks: dict[str, Any] = {'parse_constant': _no_number, 'parse_float': _finite} if finite else {}
  suspicious = _SURROGATE.search(data) is not None
  try:
    content = json.loads(data.decode('utf-8'), object_pairs_hook=unique, **checks)
    if suspicious:  # half a character: it can be neither printed nor stored
      json.dumps(content, ensure_ascii=False, default=str).encode('utf-8')
    return content
  except UnicodeDecodeError as error:
    raise ValueError(f'is not UTF-8 text (byte {error.start}), expected JSON') from error
  except UnicodeEncodeError as error:
    raise ValueError('holds text that is not valid Unicode (a lone surrogate)') from error
  except RecursionError as error:
    raise ValueError('is nested too deeply') from error
  except ValueError as error:
    raise ValueError(f'is damaged or not JSON ({printable(error)})') from error


def _no_number(text: str) -> float:
  raise ValueError(f'{text} is not a number')


def _finite(text: str) -> float:
  number = float(text)
  if math.isinf(number):
    raise ValueError(f'the number {text[:40]} is too large')
  return number


def _reason(error: Exception) -> str:
  return getattr(error, 'strerror', None) or printable(error)
