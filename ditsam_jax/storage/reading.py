"""Small files read whole: regular files only, of a bounded size; JSON of plain, finite values."""

import json
import os
import stat
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

MOST = 2**26  # bytes: the largest tokenizer.json in use is a quarter of it


def open_regular(path: Path) -> int:
  """A file descriptor to read from. Raises UserError for a missing file, a folder, a FIFO, a socket or a device."""
  try:
    _refuse_special(path, os.stat(path).st_mode)  # opening a device may do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_CLOEXEC', 0))
  except (OSError, ValueError) as error:  # ValueError: a NUL in the name
    raise UserError(f'{printable(path)} cannot be read: {getattr(error, "strerror", None) or error}') from error
  try:
    _refuse_special(path, os.fstat(descriptor).st_mode)
  except UserError:
    os.close(descriptor)
    raise
  return descriptor


def read_bytes(path: Path, most: int = MOST) -> bytes:
  """A whole file. Raises UserError where it cannot be read, is no regular file, or has more than `most` bytes."""
  try:
    with os.fdopen(open_regular(path), 'rb') as file:
      content = file.read(most + 1)
  except OSError as error:
    raise UserError(f'{printable(path)} cannot be read: {error.strerror or error}') from error
  if len(content) > most:
    raise UserError(f'{printable(path)} is larger than {most / 1e6:.0f} MB, which no file of its kind is')
  return content


def read_text(path: Path, most: int = MOST) -> str:
  """A whole file of UTF-8. Raises UserError as `read_bytes`, and where it is no text."""
  try:
    return read_bytes(path, most).decode()
  except UnicodeDecodeError as error:
    raise UserError(f'{printable(path)} is not UTF-8 text') from error


def read_json(path: Path, most: int = MOST) -> Any:
  """A whole file of JSON. Raises UserError as `read_text`, and for damaged JSON, NaN, infinities and endless nesting."""
  text = read_text(path, most)
  try:
    return json.loads(text, parse_constant=_not_finite, parse_float=_finite)
  except (ValueError, RecursionError) as error:
    reason = 'nested too deeply' if isinstance(error, RecursionError) else error
    raise UserError(f'{printable(path)} is not valid JSON ({printable(reason)})') from error


def _refuse_special(path: Path, mode: int) -> None:
  if not stat.S_ISREG(mode):
    kind = next(
      (
        kind
        for test, kind in (
          (stat.S_ISDIR, 'a folder'),
          (stat.S_ISFIFO, 'a FIFO'),
          (stat.S_ISSOCK, 'a socket'),
          (stat.S_ISCHR, 'a device'),
          (stat.S_ISBLK, 'a device'),
        )
        if test(mode)
      ),
      'something else',
    )
    raise UserError(f'{printable(path)} is {kind}, expected a regular file')


def _not_finite(text: str) -> float:
  raise ValueError(f'{text} is not a finite number')


def _finite(text: str) -> float:
  value = float(text)
  if value in (float('inf'), float('-inf')):
    raise ValueError(f'{text[:20]} is not a finite number')
  return value
