"""Results as JSON lines: appended as they are computed, and read by the next run to resume."""

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
  """A file of results, locked by this process. Results of earlier runs are kept.

  Attributes:
    keys: u64 [N], sorted: `Request.key` of all completed requests, including those in visible files of other hosts.
    ids: u64 [M], sorted: digests of their ids.
    lost: u64 [L]: those of `keys` whose pictures are not in `pictures`.
    pictures: folder of the results' pictures; None for none.
  """

  def __init__(self, path: Path, made_by: dict[str, Any], pictures: Path | None, host: int = 0, hosts: int = 1) -> None:
    """Opens the file; with several hosts, each has its own, 'results.host0of4.jsonl'.

    Raises:
      UserError: the file cannot be written, contains something else, is in use by another process, or was made by
        another model or with other options.
    """
    self.path = path if hosts == 1 else path.with_name(f'{path.stem}.host{host}of{hosts}{path.suffix}')
    self._made_by, self.pictures, self._alone = made_by, pictures, hosts == 1
    self._stream = _opened(self.path)
    keys, ids, lost = array('Q'), array('Q'), array('Q')
    try:
      for file in [path, *_of_hosts(path)]:
        if file != self.path and file.exists():
          with open(file, 'rb') as stream:
            self._read(file, stream, keys, ids, lost)
      self._truncate(self._read(self.path, self._stream, keys, ids, lost))
    except BaseException:
      self._stream.close()
      raise
    self.keys, self.ids = np.unique(np.array(keys, np.uint64)), np.unique(np.array(ids, np.uint64))
    self.lost = np.array(lost, np.uint64)

  def __enter__(self) -> 'JsonLines':
    return self

  def __exit__(self, *exception) -> None:
    self._stream.close()

  def append(self, line: bytes) -> None:
    """Appends a result. Raises UserError if it cannot be written."""
    try:
      self._stream.write(line)
      self._stream.flush()
    except OSError as error:
      raise UserError(
        f'{printable(self.path)}: cannot be written ({error.strerror}); results are kept; rerun the command to resume'
      ) from error

  def _read(self, file: Path, stream, keys: array, ids: array, lost: array) -> int:
    """Collects completed requests; returns the number of bytes in complete lines."""
    complete = 0
    for number, line in enumerate(stream, 1):
      place = f'{printable(file)} line {number:,}'
      try:
        row = json.loads(line)
        made_by = row['made_by']
        keys.append(int(row['key'], 16))
      except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        rest = line.rstrip(b'\0')
        if not line.endswith(b'\n') and _BEGINNING.startswith(rest[: len(_BEGINNING)]) and not _parses(line):
          return complete
        raise UserError(f'{place}: not a result of this command; {_ELSEWHERE}') from error
      self._check(place, row, made_by)
      if not self._is_pictured(row.get('mask', row.get('overlay')), file):
        lost.append(keys[-1])
      if row.get('id') is not None:
        ids.append(digest(json.dumps(row['id'])))
      complete += len(line)
    return complete

  def _check(self, place: str, row: dict[str, Any], made_by: Any) -> None:
    if made_by != self._made_by:
      difference = differing(made_by, self._made_by)
      raise UserError(f'{place}: made with {difference}; {_ELSEWHERE}')
    if self.pictures is not None and 'mask' not in row and 'overlay' not in row:
      raise UserError(f'{place}: made without pictures; give --no-pictures, or {_ELSEWHERE}')

  def _is_pictured(self, picture: Any, file: Path) -> bool:
    """Returns whether the picture of a result in `file` is in the folder, or not wanted."""
    if self.pictures is None:
      return True
    is_here = isinstance(picture, str) and Path(os.path.abspath(picture)).is_relative_to(os.path.abspath(self.pictures))
    is_of_another_host = file != self.path and not self._alone  # which may have its own disk
    return is_here and (is_of_another_host or os.path.exists(picture))

  def _truncate(self, complete: int) -> None:
    """Removes an incomplete last line, or adds a missing line break."""
    size = self._stream.seek(0, os.SEEK_END)
    if complete < size:
      say(f'{printable(self.path)}: the last line is truncated; it is removed and its request redone')
      self._stream.truncate(complete)
      self._stream.seek(complete)
    elif size:
      self._stream.seek(size - 1)
      if self._stream.read(1) != b'\n':
        self._stream.write(b'\n')


def differing(made_by: Any, now: dict[str, Any]) -> str:
  """Describes how results were made differently: 'model 12ab (now 34cd), dtype float32 (now bfloat16)'."""
  if not isinstance(made_by, dict):
    return 'something unknown'
  return ', '.join(
    f'{name} {printable(made_by.get(name))} (now {now.get(name)})'
    for name in now | made_by
    if made_by.get(name) != now.get(name)
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
  """The files that several hosts have written for this path."""
  pattern = re.compile(re.escape(path.stem) + r'\.host\d+of\d+' + re.escape(path.suffix))
  return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def _parses(line: bytes) -> bool:
  try:
    json.loads(line)
  except (ValueError, RecursionError):
    return False
  return True
