"""Sizes and SHA-256 of a folder's files, to detect damage later."""

import json
import os
from pathlib import Path, PurePosixPath

from ditsam_jax.errors import UserError
from ditsam_jax.storage import checksums
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

NAME = 'manifest.json'


def write(folder: Path) -> None:
  """Writes the sizes and hashes of all files of `folder` to its manifest.json; syncs everything to disk. Raises OSError."""
  for path in folder.rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.fsync(file.fileno())
  files = {name: entry for name, entry in checksums.of(folder).items() if name != NAME}
  with (folder / NAME).open('w') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def problem(folder: Path, *, needed: str) -> str | None:
  """Verifies a folder against its manifest, which must list `needed`; returns the damage in a few words, or None."""
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
      if found := checksums.difference(folder / place, entry):
        return f'{printable(name)} {found}'
  except UserError as error:
    return str(error).removeprefix(f'{folder}/')
  except OSError as error:
    return f'a file cannot be read: {error.strerror or error}'
  return None
