"""Prepared data sets in buckets: records from local copies of their shards, and uploads.

ArrayRecord reads local files only. So shards are copied before the first record is read, if the folder of copies can
hold all of them (storage/copies.py). A larger data set is read shard by shard: the next shard is prefetched, and
evicted shards are downloaded again.

`dataset_info.json` is uploaded last, after a manifest of the other files' checksums. A folder without it is incomplete.
"""

import bisect
import collections
import itertools
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]  # compiled

from ditsam_jax.data.records import damaged
from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket, copies, manifest
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.terminal import printable, say

LAST = 'dataset_info.json'
_DESCRIPTION = (LAST, 'features.json', 'metadata.json', manifest.NAME)
_AT_ONCE = 4  # shards copied in parallel
_OPEN = 512  # shards, where all fit
_FEW_OPEN = 8  # otherwise: the disk space of an open copy is free only when it is closed


def description(folder: BucketPath) -> Path:
  """Returns a local folder with everything but the shards. Raises OSError."""
  found = bucket.entries(folder)
  return copies.copy(folder, {name: found[name] for name in _DESCRIPTION if name in found})


def check(folder: BucketPath) -> None:
  """Raises UserError if a file is missing or its checksum is not the manifest's; reads no shard."""
  found = bucket.entries(folder)
  if manifest.NAME in found and (problem := manifest.problem_in_bucket(folder, found, needed='features.json')):
    raise UserError(damaged(folder, problem))


def publish(prepared: Path, folder: BucketPath) -> None:
  """Uploads a data set from a local folder. Raises OSError, UserError if another process has just done so."""
  files = {path.relative_to(prepared).as_posix(): path for path in prepared.rglob('*') if path.is_file()}
  last = files.pop(LAST)
  with copies.BytesBar(sum(path.stat().st_size for path in files.values()), 'uploading') as bar:
    bucket.upload({folder / name: path for name, path in files.items()}, bar)
  manifest.write_in_bucket(folder)
  try:
    bucket.write(folder / LAST, last.read_bytes(), version='')
  except bucket.Changed as error:
    raise UserError(f'another process has just prepared {printable(folder)}; nothing to do') from error


class ShardedRecords:
  """The records of a split as bytes, by index. Threads may share it.

  Args:
    folder: the data set's folder.
    names: its shards.
    lengths: their numbers of records.

  Raises:
    UserError: a shard is missing or damaged.
  """

  def __init__(self, folder: BucketPath, names: Sequence[str], lengths: Sequence[int]):
    check(folder)
    found = bucket.entries(folder)
    for name in names:
      if name not in found:
        raise UserError(damaged(folder, f'{name} is missing'))
    self._folder, self._names, self._lengths = folder, names, lengths
    self._entries = [found[name] for name in names]
    self._ends = list(itertools.accumulate(lengths))
    size = sum(entry.size for entry in self._entries)
    self._fits = size <= copies.most_bytes()
    self._readers: collections.OrderedDict[int, Any] = collections.OrderedDict()
    self._opening = threading.Lock()
    self._ahead = ThreadPoolExecutor(1)
    if self._fits:
      self._copy_all()
    else:
      say(
        f'{printable(folder)}: the split has {size / 1e9:.2f} GB, more than local copies may take '
        f'({copies.most_bytes() / 1e9:g} GB), so evicted shards are downloaded again; set {copies.SIZE} to more'
      )

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, index: int) -> bytes:
    if not 0 <= index < len(self):
      raise IndexError(index)
    shard = bisect.bisect_right(self._ends, index)
    first = self._ends[shard] - self._lengths[shard]
    return self._reader(shard).read([index - first])[0]

  def _copy_all(self) -> None:
    missing = [shard for shard in range(len(self._names)) if not copies.are_here(*self._object(shard))]
    if not missing:
      return
    to_come = sum(self._entries[shard].size for shard in missing)
    with copies.BytesBar(to_come, 'fetching data') as bar, ThreadPoolExecutor(_AT_ONCE) as pool:
      for done in [pool.submit(copies.copy, *self._object(shard), bar) for shard in missing]:
        done.result()

  def _object(self, shard: int) -> tuple[BucketPath, dict[str, bucket.Entry]]:
    return self._folder, {self._names[shard]: self._entries[shard]}

  def _reader(self, shard: int) -> Any:
    with self._opening:
      if shard in self._readers:
        self._readers.move_to_end(shard)
        return self._readers[shard]
      if not self._fits and shard + 1 < len(self._names):
        self._ahead.submit(copies.copy, *self._object(shard + 1))
      name = self._names[shard]
      try:
        reader = array_record_module.ArrayRecordReader(str(copies.copy(*self._object(shard)) / name))
        found = reader.num_records()
      except RuntimeError as error:
        raise UserError(damaged(self._folder, f'{name}: {printable(error, 150)}')) from error
      if found != self._lengths[shard]:
        raise UserError(damaged(self._folder, f'{name} holds {found} records, {LAST} says {self._lengths[shard]}'))
      self._readers[shard] = reader
      while len(self._readers) > (_OPEN if self._fits else _FEW_OPEN):
        self._readers.popitem(last=False)  # closed when no thread reads from it any more
      return reader
