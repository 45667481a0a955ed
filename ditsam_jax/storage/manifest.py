"""Sizes and SHA-256 of a folder's files, to detect damage later."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket, checksums
from ditsam_jax.storage.bucket import BucketPath, Entry
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

NAME = 'manifest.json'


def write(folder: Path) -> None:
  """Writes the sizes and hashes of all files of `folder` to its manifest.json; syncs all to disk. Raises OSError."""
  for path in folder.rglob('*'):
    if path.is_file():
      with path.open('rb') as file:
        os.fsync(file.fileno())
  files = {name: entry for name, entry in checksums.of(folder).items() if name != NAME}
  with (folder / NAME).open('w') as file:
    json.dump({'files': files}, file, indent=1)
    file.flush()
    os.fsync(file.fileno())


def problem_in_bucket(folder: BucketPath, found: Mapping[str, Entry], *, needed: str) -> str | None:
  """Like `problem` for a folder in a bucket, with the store's checksums, so that only the manifest is read.

  Args:
    folder: the folder.
    found: its objects.
    needed: a file that the manifest must list.
  """
  if NAME not in found:
    return f'{NAME} is missing'
  try:
    files = _files(read_json(folder / NAME), needed)
    for name, entry in sorted(files.items()):
      if name not in found:
        return f'{printable(name)} is missing'
      if not isinstance(entry, list) or len(entry) != 2:
        return f'{printable(name)} has {printable(entry)} for a checksum'
      if found[name].size != entry[0]:
        return f'{printable(name)} has {found[name].size:,} bytes instead of {printable(entry[0])}'
      if found[name].checksum != entry[1]:
        return f'{printable(name)} has changed: its checksum differs'
  except UserError as error:
    return str(error).removeprefix(f'{folder}/')
  return None


def write_in_bucket(folder: BucketPath) -> None:
  """Writes the manifest of a folder in a bucket, which must not have one yet. Raises OSError."""
  files = {name: [entry.size, entry.checksum] for name, entry in bucket.entries(folder).items() if name != NAME}
  try:
    bucket.write(folder / NAME, json.dumps({'files': files}, indent=1).encode(), version='')
  except bucket.Changed as error:
    raise OSError(None, f'{folder} already has a manifest') from error


def problem(folder: Path, *, needed: str) -> str | None:
  """Verifies a folder against its manifest, which must list `needed`; returns the damage in a few words, or None."""
  if not folder.is_dir():
    return 'it is not a folder'
  if not os.path.lexists(folder / NAME):
    return f'{NAME} is missing'
  try:
    files = _files(read_json(folder / NAME), needed)
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


def _files(content: Any, needed: str) -> dict[str, Any]:
  """The files that a manifest lists. Raises UserError."""
  files = content.get('files') if isinstance(content, dict) else None
  if not isinstance(files, dict) or needed not in files:
    raise UserError(f'{NAME} lists no files')
  return files
