"""Local copies of objects in buckets, verified, in a folder of bounded size.

The folder is ~/.cache/ditsam_jax/buckets or DITSAM_JAX_CACHE, and holds DITSAM_JAX_CACHE_GB, by default 50. The copies
used longest ago make room for new ones. Processes share them, and each object is downloaded once.
"""

import base64
import contextlib
import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import BucketPath, Entry
from ditsam_jax.storage.paths import cache_folder
from ditsam_jax.terminal import printable, progress

FOLDER, SIZE = 'DITSAM_JAX_CACHE', 'DITSAM_JAX_CACHE_GB'  # environment variables
_COPY = re.compile(r'[0-9a-f]{40}|\.[0-9a-f]{40}\.[0-9a-f]{16}')  # names of copies, and of unfinished ones
_SIZE = 50.0  # GB
_SPARE = 2**28  # bytes left free on the disk
_TRIES = 3
_STALE = 6 * 3600  # seconds after which a download counts as abandoned


def most_bytes() -> int:
  """Returns the size of the folder of copies in bytes. Raises UserError if the environment variable is invalid."""
  given = os.environ.get(SIZE, '') or str(_SIZE)
  try:
    size = float(given)
    if not 0.001 <= size <= 1e9:
      raise ValueError
  except ValueError:
    raise UserError(f'{SIZE}={printable(given)}: expected a size in GB, such as 50') from None
  return int(size * 1e9)


def copy(folder: BucketPath, objects: Mapping[str, Entry], bar: Any = None) -> Path:
  """Returns a local folder with objects of a folder in a bucket, by relative name; downloads what is missing.

  Args:
    folder: the folder in the bucket.
    objects: the objects, by relative name, as `bucket.entries` returns them.
    bar: a progress bar that advances by bytes.

  Raises:
    UserError: the objects do not fit into the folder of copies or on the disk, or the name of one is no path below it.
    OSError: they cannot be downloaded, or the copies cannot be written.
  """
  _check_names(folder, objects)
  root = _root()
  place = root / _key(folder, objects)
  if not _used(place):
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f'{place.name}.lock'):
      if not _used(place):
        _download(folder, objects, place, bar)
        bar = None
  if bar is not None:
    bar.update(sum(entry.size for entry in objects.values()))
  return place


def are_here(folder: BucketPath, objects: Mapping[str, Entry]) -> bool:
  """Whether `copy` would not have to download anything."""
  return (_root() / _key(folder, objects)).is_dir()


def copy_with_progress(folder: BucketPath, objects: Mapping[str, Entry]) -> Path:
  """Like `copy`, with a progress bar if something is downloaded."""
  if are_here(folder, objects):
    return copy(folder, objects)
  with BytesBar(sum(entry.size for entry in objects.values()), f'downloading {printable(folder.name)}') as bar:
    return copy(folder, objects, bar)


class BytesBar:
  """A progress bar in MB that advances by bytes; threads may share it."""

  def __init__(self, total: int, description: str):
    self._bar = progress(-(-total // 10**6), description, 'MB')
    self._bytes = 0
    self._advancing = threading.Lock()

  def __enter__(self) -> 'BytesBar':
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def update(self, number: int) -> None:
    with self._advancing:
      before = self._bytes // 10**6
      self._bytes += number
      if more := self._bytes // 10**6 - before:
        self._bar.update(more)


def _root() -> Path:
  given = os.environ.get(FOLDER, '')
  return Path(given) if given else cache_folder() / 'buckets'


def _check_names(folder: BucketPath, names: Iterable[str]) -> None:
  """Raises UserError for names that object stores allow, but that are outside or no file in a folder on a disk."""
  for name in names:
    if any(part in ('', '.', '..') for part in name.split('/')):
      raise UserError(
        f"'{printable(folder)}' holds an object named {printable(name)}, expected a path without empty, '.' or '..' "
        f'parts; rename or remove the object'
      )


def _key(folder: BucketPath, objects: Mapping[str, Entry]) -> str:
  identity = [str(folder), *sorted((name, entry.version, entry.checksum) for name, entry in objects.items())]
  return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]


def _used(place: Path) -> bool:
  """Marks a copy as used; returns False if there is none."""
  try:
    os.utime(place)
    return True
  except FileNotFoundError:
    return False


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
  """Excludes other processes and threads.

  The lock file is kept: deleting it would let two processes lock different files of the same name.
  """
  with lock.open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


def _download(folder: BucketPath, objects: Mapping[str, Entry], place: Path, bar: Any) -> None:
  _make_room(place.parent, sum(entry.size for entry in objects.values()), folder)
  unfinished = place.with_name(f'.{place.name}.{secrets.token_hex(8)}')
  try:
    for name in objects:
      (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
    missing = dict(objects)
    for left in reversed(range(_TRIES)):
      bucket.download({folder / name: unfinished / name for name in missing}, bar)
      missing = {name: entry for name, entry in missing.items() if not _is_complete(unfinished / name, entry)}
      if not missing:
        break
      if not left:
        raise bucket.BucketError(5, 'the download differs from the checksum of the store', str(folder / min(missing)))
      bar = None
    os.replace(unfinished, place)
    _make_room(place.parent, 0, folder, keep=place)  # other downloads may have ended meanwhile
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def _is_complete(file: Path, entry: Entry) -> bool:
  import google_crc32c  # comes with gcsfs

  if file.stat().st_size != entry.size:
    return False
  checksum = google_crc32c.Checksum()
  with file.open('rb') as stream:
    while block := stream.read(2**22):
      checksum.update(block)
  return entry.checksum in ('crc32c:', f'crc32c:{base64.b64encode(checksum.digest()).decode()}')


def _make_room(root: Path, needed: int, folder: BucketPath, keep: Path | None = None) -> None:
  """Removes copies used longest ago, but not `keep`, until there is room. Raises UserError if that is not enough."""
  most = most_bytes()
  if needed > most:
    raise UserError(
      f"'{printable(folder)}' takes {needed / 1e9:.2f} GB, and the local copies may take {most / 1e9:g} GB in all; "
      f'set {SIZE} to more'
    )
  places = [place for place in root.iterdir() if _COPY.fullmatch(place.name) and place.is_dir()]  # not the user's own
  copies = sorted((*_state(place), place) for place in places)
  total = sum(size for _, size, _ in copies)
  for used, size, place in copies:
    downloading = place.name.startswith('.') and time.time() - used < _STALE
    if total + needed <= most and shutil.disk_usage(root).free >= needed + _SPARE:
      return
    if not downloading and place != keep:
      shutil.rmtree(place, ignore_errors=True)
      total -= size
  if shutil.disk_usage(root).free < needed:
    raise UserError(
      f"'{printable(folder)}' takes {needed / 1e9:.2f} GB, which {root} has no space for; free some space, or set "
      f'{FOLDER} to another folder'
    )


def _state(place: Path) -> tuple[float, int]:
  """When a copy was last used, and its size; zeros if another process has just removed it."""
  try:
    return place.stat().st_mtime, sum(file.stat().st_size for file in place.rglob('*') if file.is_file())
  except FileNotFoundError:
    return 0.0, 0
