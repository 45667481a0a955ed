"""Results as JSON lines: appended to as they come, and read by the next run to know what is done."""

import fcntl
import json
import os
import re
from array import array
from pathlib import Path
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.requests import digest
from ditsam_jax.terminal import printable, say

_BEGINNING = b'{"image": '
_ELSEWHERE = 'choose another --json, or move that file away'


class JsonLines:
  """A file of results, of this process alone; what it holds of earlier runs stays.

  Attributes:
    keys: u64 [N], sorted: `Request.key` of all that is done, by all hosts whose files are to be seen here.
    ids: u64 [M], sorted: digests of the ids among them.
  """

  def __init__(self, path: Path, made_by: dict[str, Any], pictures: bool, host: int = 0, hosts: int = 1) -> None:
    """Opens the file; of several hosts each has its own, 'results.host0of4.jsonl'.

    Raises:
      UserError: it cannot be written, is no such file, is being written by another process or was made by another
        model or with other options.
    """
    self.path = path if hosts == 1 else path.with_name(f'{path.stem}.host{host}of{hosts}{path.suffix}')
    self._made_by, self._pictures = made_by, pictures
    self._stream = _opened(self.path)
    keys, ids = array('Q'), array('Q')
    try:
      for file in [path, *_of_hosts(path)]:
        if file != self.path and file.exists():
          with open(file, 'rb') as stream:
            self._read(file, stream, keys, ids)
      self._cut_to(self._read(self.path, self._stream, keys, ids))
    except BaseException:
      self._stream.close()
      raise
    self.keys, self.ids = np.unique(np.array(keys, np.uint64)), np.unique(np.array(ids, np.uint64))

  def __enter__(self) -> 'JsonLines':
    return self

  def __exit__(self, *exception) -> None:
    self._stream.close()

  def append(self, line: bytes) -> None:
    """Adds a result. Raises UserError where the disk is full or gone."""
    try:
      self._stream.write(line)
      self._stream.flush()
    except OSError as error:
      raise UserError(
        f'{printable(self.path)}: cannot be written ({error.strerror}); results are kept; rerun the command to resume'
      ) from error

  def _read(self, file: Path, stream, keys: array, ids: array) -> int:
    """Collects what is done; returns how many bytes of the file are whole lines."""
    whole = 0
    for number, line in enumerate(stream, 1):
      place = f'{printable(file)} line {number:,}'
      try:
        row = json.loads(line)
        key, made_by = int(row['key'], 16), row['made_by']
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        rest = line.rstrip(b'\0')
        if not line.endswith(b'\n') and _BEGINNING.startswith(rest[: len(_BEGINNING)]) and not _parses(line):
          return whole
        raise UserError(f'{place}: not a result of this command; {_ELSEWHERE}') from error
      self._check(place, row, made_by)
      keys.append(key)
      if row.get('id') is not None:
        ids.append(digest(json.dumps(row['id'])))
      whole += len(line)
    return whole

  def _check(self, place: str, row: dict[str, Any], made_by: Any) -> None:
    if made_by != self._made_by:
      difference = differing(made_by, self._made_by)
      raise UserError(f'{place}: made with {difference}; {_ELSEWHERE}')
    if self._pictures and 'mask' not in row and 'overlay' not in row:
      raise UserError(f'{place}: made without pictures; give --no-pictures, or {_ELSEWHERE}')

  def _cut_to(self, whole: int) -> None:
    size = self._stream.seek(0, os.SEEK_END)
    if whole < size:
      say(f'{printable(self.path)}: the last line is truncated; it is removed and its request redone')
      self._stream.truncate(whole)
      self._stream.seek(whole)
    elif size:
      self._stream.seek(size - 1)
      if self._stream.read(1) != b'\n':
        self._stream.write(b'\n')


def differing(made_by: Any, now: dict[str, Any]) -> str:
  """'model 12ab (now 34cd), dtype float32 (now bfloat16)': what differs in how results were made."""
  if not isinstance(made_by, dict):
    return 'something unknown'
  return ', '.join(
    f'{name} {printable(made_by.get(name))} (now {value})' for name, value in now.items() if made_by.get(name) != value
  )


def _opened(path: Path):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
      raise UserError(f'--json={printable(path)}: a folder or a device; name a file')
    stream = open(path, 'a+b')  # noqa: SIM115 (closed by JsonLines)
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    raise UserError(
      f'--json={printable(path)}: another process is writing it; wait for it, or choose another'
    ) from error
  except (OSError, ValueError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(f'--json={printable(path)}: cannot be written ({reason}); name another') from error
  stream.seek(0)
  return stream


def _of_hosts(path: Path) -> list[Path]:
  """Files of several hosts that belong to this one."""
  pattern = re.compile(re.escape(path.stem) + r'\.host\d+of\d+' + re.escape(path.suffix))
  return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def _parses(line: bytes) -> bool:
  try:
    json.loads(line)
  except (ValueError, RecursionError):
    return False
  return True
