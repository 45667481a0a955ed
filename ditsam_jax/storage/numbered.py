"""Numbered folders that are complete or not there: on a disk by one rename, in a bucket by a manifest written last.

  checkpoints/40.writing/         on a disk: becomes 40
  checkpoints/40.1f3a9c02/        in a bucket: counts as 40 once it has a manifest.json

In a bucket, each attempt has a name of its own. So a process that was paused, and wakes up when another one has taken
over, cannot mix its objects with the other's.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket, manifest
from ditsam_jax.storage.bucket import AnyPath, BucketPath, Entry

_NUMBER = re.compile(r'0|[1-9][0-9]{0,8}')  # numbers are int32
_ATTEMPT = re.compile(r'(0|[1-9][0-9]{0,8})\.([0-9a-f]{8})')
ATTEMPTS = 2**31  # attempts are numbered at random below this


class Numbered(Protocol):
  """A folder of numbered folders. With several hosts, only the first one calls what changes something."""

  @property
  def folder(self) -> AnyPath:
    """The folder that contains them."""
    ...

  def numbers(self) -> list[int]:
    """Returns the sorted numbers of all complete folders, damaged or not."""
    ...

  def unfinished(self, number: int, attempt: int) -> AnyPath:
    """Returns where attempt `attempt` writes a folder. All hosts get the same one."""
    ...

  def complete(self, number: int, attempt: int) -> None:
    """Completes a folder that has been written, and replaces others of the same number. Raises OSError."""
    ...

  def intact(self, number: int, needed: str) -> tuple[int, str | None]:
    """Verifies a complete folder, which must hold a file; returns the intact attempt and what is damaged, or None."""
    ...

  def place(self, number: int, attempt: int) -> AnyPath:
    """Returns where a complete folder is."""
    ...

  def discard(self, number: int) -> None:
    """Removes a folder. Raises OSError."""
    ...

  def clear_leftovers(self) -> None:
    """Removes what killed processes left. Raises OSError."""
    ...


def at(folder: AnyPath) -> Numbered:
  """Returns the numbered folders in a folder."""
  return _InBucket(folder) if isinstance(folder, BucketPath) else _OnDisk(folder)


class _OnDisk:
  def __init__(self, folder: Path):
    self.folder = folder

  def numbers(self) -> list[int]:
    if not os.path.lexists(self.folder):
      return []
    if not self.folder.is_dir():
      raise UserError(f'{self.folder} is not a folder; choose another --workdir, or delete it')
    return sorted(int(name) for name in os.listdir(self.folder) if _NUMBER.fullmatch(name))

  def unfinished(self, number: int, attempt: int) -> Path:
    return self.folder / f'{number}.writing'

  def complete(self, number: int, attempt: int) -> None:
    manifest.write(self.unfinished(number, attempt))
    self.discard(number)  # a damaged one of the same number
    os.rename(self.unfinished(number, attempt), self.folder / str(number))
    _fsync(self.folder)

  def intact(self, number: int, needed: str) -> tuple[int, str | None]:
    return 0, manifest.problem(self.folder / str(number), needed=needed)

  def place(self, number: int, attempt: int) -> Path:
    return self.folder / str(number)

  def discard(self, number: int) -> None:
    """Renames it first, so that a partly removed one has no number."""
    path = self.folder / str(number)
    if os.path.lexists(path):
      _remove(path.with_suffix('.deleting'))
      os.rename(path, path.with_suffix('.deleting'))
      _remove(path.with_suffix('.deleting'))

  def clear_leftovers(self) -> None:
    for path in [*self.folder.glob('*.writing'), *self.folder.glob('*.deleting')]:
      _remove(path)


class _InBucket:
  def __init__(self, folder: BucketPath):
    self.folder = folder

  def numbers(self) -> list[int]:
    return sorted({number for (number, _), found in self._attempts().items() if manifest.NAME in found})

  def unfinished(self, number: int, attempt: int) -> BucketPath:
    return self.folder / f'{number}.{attempt:08x}'

  def complete(self, number: int, attempt: int) -> None:
    manifest.write_in_bucket(self.unfinished(number, attempt))
    for other in self._attempts():
      if other[0] == number and other[1] != attempt:
        self._remove(*other)

  def intact(self, number: int, needed: str) -> tuple[int, str | None]:
    problem = f'{manifest.NAME} is missing'
    for (its_number, attempt), found in self._attempts().items():
      if its_number == number and manifest.NAME in found:
        problem = manifest.problem_in_bucket(self.unfinished(number, attempt), found, needed=needed)
        if problem is None:
          return attempt, None
    return 0, problem

  def place(self, number: int, attempt: int) -> BucketPath:
    return self.unfinished(number, attempt)

  def discard(self, number: int) -> None:
    for other in self._attempts():
      if other[0] == number:
        self._remove(*other)

  def clear_leftovers(self) -> None:
    for attempt, found in self._attempts().items():
      if manifest.NAME not in found:
        self._remove(*attempt)

  def _remove(self, number: int, attempt: int) -> None:
    """Removes the manifest first, so that a partly removed one does not count."""
    folder = self.unfinished(number, attempt)
    bucket.remove([folder / manifest.NAME])
    bucket.remove_tree(folder)

  def _attempts(self) -> Mapping[tuple[int, int], dict[str, Entry]]:
    """Objects by number and attempt."""
    found: dict[tuple[int, int], dict[str, Entry]] = {}
    for name, entry in bucket.entries(self.folder).items():
      attempt, _, rest = name.partition('/')
      if match := _ATTEMPT.fullmatch(attempt):
        found.setdefault((int(match[1]), int(match[2], 16)), {})[rest] = entry
    return found


def _remove(path: Path) -> None:
  """Removes a folder or a file; ignores errors."""
  if path.is_dir() and not path.is_symlink():
    shutil.rmtree(path, ignore_errors=True)
  else:
    with contextlib.suppress(OSError):
      path.unlink()


def _fsync(folder: Path) -> None:
  descriptor = os.open(folder, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
