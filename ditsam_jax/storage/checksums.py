"""Sizes and SHA-256 of files, because TensorStore reads weights with a flipped bit without an error."""

import hashlib
import os
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular
from ditsam_jax.terminal import printable

_MOST_BYTES = 2**48  # per file


def of(folder: Path) -> dict[str, list]:
  """Returns [bytes, SHA-256] of all files in a folder, recursively, by relative path. Raises OSError."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  return {path.relative_to(folder).as_posix(): [path.stat().st_size, _digest(path)] for path in files}


def difference(path: Path, recorded: Any) -> str | None:
  """Compares a file with its recorded [bytes, SHA-256]; returns what differs in a few words, or None.

  Raises:
    UserError: the path is not a regular file.
    OSError: the file cannot be read.
  """
  if not isinstance(recorded, list) or len(recorded) != 2:
    return f'has {printable(recorded)} for a checksum'
  if not os.path.lexists(path):
    return 'is missing'
  with open_regular(path, most_bytes=_MOST_BYTES) as file:
    size = os.fstat(file.fileno()).st_size
  if size != recorded[0]:
    return f'has {size:,} bytes instead of {printable(recorded[0])}'
  if _digest(path) != recorded[1]:
    return 'has changed: its checksum differs'
  return None


def check(folder: Path, recorded: dict[str, Any]) -> None:
  """Raises UserError if a recorded file is missing, has changed, or is not a regular file."""
  for name, entry in sorted(recorded.items()):
    path = folder / name
    if folder not in path.parents or '..' in Path(name).parts:
      raise UserError(f'{printable(name)} is recorded in {printable(folder)} and lies outside; copy the model again')
    try:
      found = difference(path, entry)
    except OSError as error:
      raise UserError(f'{printable(path)} cannot be read: {error.strerror or error}') from error
    if found:
      raise UserError(f'{printable(path)} is damaged: it {found}; copy the model again')


def _digest(path: Path) -> str:
  with open_regular(path, most_bytes=_MOST_BYTES) as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
