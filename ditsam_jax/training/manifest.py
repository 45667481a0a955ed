"""What a folder is made of: size and SHA-256 of every file, to know later whether it is still whole."""

import hashlib
import json
import os
from pathlib import Path, PurePosixPath

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular, read_json
from ditsam_jax.terminal import printable

NAME = 'manifest.json'
_MOST_BYTES = 2**48  # of a file


def write(folder: Path) -> None:
  """Notes every file of `folder` in its manifest.json, all of it on the disk before this returns. Raises OSError."""
  files = {path.relative_to(folder).as_posix(): _measure(path) for path in _files(folder)}
  with (folder / NAME).open('w') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def problem(folder: Path, *, needed: str) -> str | None:
  """What is wrong with a folder, in a few words; None if every file is as its manifest says, `needed` among them."""
  if not folder.is_dir():
    return 'it is not a folder'
  if not os.path.lexists(folder / NAME):
    return f'{NAME} is missing'
  try:
    content = read_json(folder / NAME)
    files = content.get('files') if isinstance(content, dict) else None
    if not isinstance(files, dict) or needed not in files:
      return f'{NAME} lists no files'
    for name, entry in sorted(files.items()):
      place = PurePosixPath(name)
      if place.is_absolute() or '..' in place.parts or '\0' in name:
        return f'{NAME} names {printable(name)}, which is outside'
      if not isinstance(entry, list) or len(entry) != 2:
        return f'{NAME} says {printable(entry)} of {printable(name)}'
      if found := _difference(folder / place, *entry):
        return f'{printable(name)} {found}'
  except UserError as error:
    return str(error).removeprefix(f'{folder}/')
  except OSError as error:
    return f'a file cannot be read: {error.strerror or error}'
  return None


def _difference(path: Path, size: object, digest: object) -> str | None:
  if not os.path.lexists(path):
    return 'is missing'
  with open_regular(path, most_bytes=_MOST_BYTES) as file:
    if (found := os.fstat(file.fileno()).st_size) != size:
      return f'has {found} bytes instead of {printable(size)}'
    if hashlib.file_digest(file, 'sha256').hexdigest() != digest:
      return 'has changed: its checksum differs'
  return None


def _files(folder: Path) -> list[Path]:
  return sorted(path for path in folder.rglob('*') if path.is_file() and path != folder / NAME)


def _measure(path: Path) -> list:
  with path.open('rb') as file:
    os.fsync(file.fileno())
    return [path.stat().st_size, hashlib.file_digest(file, 'sha256').hexdigest()]
