"""Size and SHA-256 of files: TensorStore reads weights with a flipped bit without a word."""

import hashlib
import os
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular
from ditsam_jax.terminal import printable

_MOST_BYTES = 2**48  # of a file


def of(folder: Path) -> dict[str, list]:
  """[bytes, SHA-256] of every file in a folder and below, by its path there. Raises OSError."""
  return {path.relative_to(folder).as_posix(): _measured(path) for path in sorted(folder.rglob('*')) if path.is_file()}


def check(folder: Path, recorded: dict[str, Any]) -> None:
  """Raises UserError where a recorded file is missing, no regular file, or another than it was."""
  for name, entry in sorted(recorded.items()):
    path = folder / name
    if folder not in path.parents or '..' in path.parts:
      raise UserError(f'{printable(name)} is recorded in {printable(folder)} and lies outside; copy the model again')
    if not os.path.lexists(path):
      raise UserError(f'{printable(path)} is missing; copy the model again')
    if _measured(path) != entry:
      raise UserError(
        f'{printable(path)} is damaged: its size or checksum has changed since it was saved; copy the model again'
      )


def _measured(path: Path) -> list:
  try:
    with open_regular(path, most_bytes=_MOST_BYTES) as file:
      return [os.fstat(file.fileno()).st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
  except OSError as error:
    raise UserError(f'{printable(path)} cannot be read: {error.strerror or error}') from error
