"""Folders written whole, such as models and exports.

A folder is written beside its place as `.NAME.writing-*`. Where there was one before, that is renamed to
`.NAME.retired-*` just before the new one is renamed to NAME. So:

- Under NAME is the old content or the new one, never a part or a mixture.
- A process that is killed between the two renames leaves nothing under NAME. The old content is still whole in
  `.NAME.retired-*`; the next write to NAME, or `recover`, which looking up a model calls, renames it back.
- A process that is killed earlier leaves `.NAME.writing-*`, which the next write to NAME removes.

A writer locks both (flock) until it ends or is killed, so those of living processes are left alone, on other hosts too
if the file system shares locks. Where there are no locks, leftovers stay. If two processes write to NAME at once, one
of the results is there at the end, and the other process may fail.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator
from pathlib import Path

_NUMBER = r'(?P<process>\d{1,10})|[0-9a-f]{32}'  # earlier versions took the process' id, and no locks
_STABLE = 6  # consecutive checks after which a removed folder counts as gone


@contextlib.contextmanager
def written_folder(target: Path, parts: Collection[str] | None = None) -> Iterator[Path]:
  """Yields a new folder that then replaces `target`, or is deleted after an exception.

  Args:
    target: the folder to write, an absolute path. What is there is replaced.
    parts: names of what is replaced in an existing folder, whose other files are kept; by default everything.

  Raises:
    OSError: the folder cannot be written.
  """
  recover(target, parts)
  with contextlib.ExitStack() as locks:
    unfinished = _begun(target, locks)
    try:
      yield unfinished
      retired = target.with_name(f'.{target.name}.retired-{uuid.uuid4().hex}')
      _replace(unfinished, target, retired, locks)
      if retired.exists():
        _merge(retired, target, parts)
    finally:
      _remove_for_good(unfinished)


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
  """Yields a folder of this user alone among the system's temporary files, and then deletes it."""
  folder = Path(tempfile.mkdtemp(prefix='ditsam_jax-'))
  try:
    yield folder
  finally:
    _remove_for_good(folder)


def recover(target: Path, parts: Collection[str] | None = None) -> None:
  """Completes or undoes what killed processes left of writing `target`; for `parts` see `written_folder`."""
  leftover = re.compile(rf'\.{re.escape(target.name)}\.(?P<state>writing|retired)-({_NUMBER})')
  try:
    found = [match for match in map(leftover.fullmatch, os.listdir(target.parent)) if match]
  except OSError:  # a folder that does not exist yet, or may not be listed
    return
  for match in found:
    path = target.with_name(match[0])
    with contextlib.suppress(OSError), _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB):
      if match['process'] and _lives(int(match['process'])):
        continue
      if match['state'] == 'writing':
        shutil.rmtree(path, ignore_errors=True)
      elif os.path.lexists(target):
        _merge(path, target, parts)
      else:
        os.replace(path, target)


def _begun(target: Path, locks: contextlib.ExitStack) -> Path:
  """Creates and locks the folder to write to."""
  target.parent.mkdir(parents=True, exist_ok=True)
  while True:
    folder = target.with_name(f'.{target.name}.writing-{uuid.uuid4().hex}')
    folder.mkdir()
    with contextlib.suppress(OSError):  # no locks on this file system
      locks.enter_context(_locked(folder, fcntl.LOCK_SH))
    if folder.exists():  # else another process took it for a leftover, before the lock
      return folder


def _replace(new: Path, target: Path, retired: Path, locks: contextlib.ExitStack) -> None:
  try:
    if target.exists():
      with contextlib.suppress(OSError):  # no locks on this file system
        locks.enter_context(_locked(target, fcntl.LOCK_SH | fcntl.LOCK_NB))
      os.replace(target, retired)
    os.replace(new, target)
  except BaseException:  # also on Ctrl-C
    if os.path.lexists(retired) and not os.path.lexists(target):
      os.replace(retired, target)
    raise


def _merge(retired: Path, target: Path, parts: Collection[str] | None) -> None:
  """Removes the old content, after moving what the new one does not replace."""
  if parts is not None:
    for path in retired.iterdir():
      if path.name not in parts and not os.path.lexists(target / path.name):
        os.replace(path, target / path.name)
  if retired.is_symlink():
    retired.unlink()
  else:
    shutil.rmtree(retired, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path, kind: int) -> Iterator[None]:
  """Holds a folder's lock, whatever its name. Raises OSError if another process excludes it, or there are no locks."""
  descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
  try:
    fcntl.flock(descriptor, kind)
    yield
  finally:
    os.close(descriptor)


def _lives(process: int) -> bool:
  try:
    os.kill(process, 0)
  except ProcessLookupError:
    return False
  except (PermissionError, OverflowError):  # of another user; no id
    pass
  return True


def _remove_for_good(folder: Path) -> None:
  """Removes a folder that a library's threads may recreate after a failure, as TensorStore's do."""
  absent = 0 if folder.exists() else _STABLE
  for _ in range(100):
    if absent == _STABLE:
      return
    absent = 0 if folder.exists() else absent + 1
    shutil.rmtree(folder, ignore_errors=True)
    time.sleep(0.05)
