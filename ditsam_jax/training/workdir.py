"""A run's folder, on a disk or in a bucket, used by one process at a time and tied to one config."""

import fcntl
import os
import re
import shutil
import socket
from collections.abc import Collection
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.parallel import distributed
from ditsam_jax.storage import bucket, folders, numbered, paths, saved_model
from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.storage.files import UNFINISHED, read_json, write_json
from ditsam_jax.storage.lease import Lease
from ditsam_jax.terminal import printable, say

# Fields that may differ between the hosts of a run.
OF_A_HOST = (
  'config.data.data_dir',
  'config.data.threads',
  'config.data.processes',
  'config.data.in_memory',
)
# Fields that may change on resume: locations, speed, retention and logging.
FREE = (
  *OF_A_HOST,
  'config.log_every',
  'config.checkpoint_every',
  'config.keep_checkpoints',
  'config.on_save_failure',
  'config.max_skipped',
  'config.eval_batch_size',
  'config.mesh',
  'config.remat',
  'config.scan',
  'config.attention',
  'config.optimizer.warmup_share',  # only warmup_steps matters
)
FORMER = ('config.keep_best', 'config.model.attention')  # free fields of earlier versions

_RESULTS = ('model', 'best', 'metrics.json')

# Temporary names of models, JSON, images and batches, which are renamed when complete.
_UNFINISHED = re.compile(r'\.(model|best)\.writing-[0-9a-f]+|' + UNFINISHED)


class Workdir:
  """A folder that can be claimed; the claim ends with the context, or with the process, even if it is killed.

  In a bucket, the claim of a killed process ends with its lease, or at once if another process can see it is dead.
  """

  def __init__(self, path: AnyPath):
    self.path = paths.any_path(path)
    self._lock: int | None = None
    self._lease: Lease | None = None

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, *exception):
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None
    if self._lease is not None:
      self._lease.__exit__()
      self._lease = None

  def check_place(self) -> None:
    """Raises UserError if the folder cannot be created; creates nothing."""
    if isinstance(self.path, BucketPath):
      bucket.check(self.path, writes=distributed.is_first())
      return
    try:
      nearest = self.path.absolute()
      while not os.path.lexists(nearest):
        nearest = nearest.parent
    except (OSError, ValueError) as error:
      raise UserError(f'workdir {str(self.path)!r} cannot be used: {error}; choose another --workdir') from error
    if not nearest.is_dir():
      raise UserError(f'workdir {str(self.path)!r}: {str(nearest)!r} is not a folder; choose another --workdir')
    if not os.access(nearest, os.W_OK):
      raise UserError(f'workdir {str(self.path)!r}: {str(nearest)!r} cannot be written to; choose another --workdir')

  @property
  def begun(self) -> bool:
    """Whether it contains checkpoints or results, which another config must not continue or replace."""
    if any((self.path / name).exists() for name in _RESULTS):
      return True
    checkpoints = self.path / 'checkpoints'
    return checkpoints.is_dir() and bool(numbered.at(checkpoints).numbers())

  def still_ours(self) -> None:
    """Raises OSError if another run has taken over a workdir in a bucket, for example while this process was paused."""
    if self._lease is not None:
      self._lease.check()

  def claim(self, config: dict[str, Any]) -> None:
    """Creates the folder and stores the config (plain containers), or checks the config of the run in it.

    If a run left nothing to resume from, its folder accepts another config.

    Raises:
      UserError: another process uses the folder, it contains a run with another config, or it cannot be written.
    """
    if changed := differences(distributed.gathered([config])[0], config, free=OF_A_HOST):
      raise UserError(f'the hosts were started with different configs ({"; ".join(changed[:4])}); expected the same')
    if not distributed.is_first():  # on some network file systems, a lock excludes other hosts
      return
    file = self.path / 'config.json'
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._acquire_lock()
      self._clear_leftovers()
      if self.begun and os.path.lexists(file):
        changed = differences(read_json(file, finite=False), config)
        if changed:
          raise UserError(
            f'workdir {str(self.path)!r} holds a run with another config ({"; ".join(changed[:4])}); '
            f'choose another --workdir or delete this one'
          )
      write_json(file, config)
    except (OSError, ValueError) as error:
      reason = getattr(error, 'strerror', None) or error
      raise UserError(f'workdir {str(self.path)!r} cannot be used: {reason}; choose another --workdir') from error

  def _acquire_lock(self) -> None:
    if isinstance(self.path, BucketPath):
      self._lease = Lease(self.path / '.lock', f'workdir {str(self.path)!r}').__enter__()
      return
    self._lock = os.open(self.path / '.lock', os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released by the system when the process ends
    except BlockingIOError as error:
      owner = printable(os.read(self._lock, 200).decode(errors='replace').strip())
      raise UserError(
        f'workdir {str(self.path)!r} is in use by {owner or "another process"}; wait for it, end it, or '
        f'choose another --workdir'
      ) from error
    except OSError as error:  # a file system without locks
      say(f'warning: {self.path} cannot be locked ({error.strerror}); make sure that only one process trains there')
      return
    os.truncate(self._lock, 0)
    os.write(self._lock, f'process {os.getpid()} on {socket.gethostname()}\n'.encode())

  def _clear_leftovers(self) -> None:
    """Removes temporary files of killed processes; models that they were replacing are recovered."""
    if isinstance(self.path, BucketPath):
      bucket.remove([path for path in self.path.iterdir() if path.name.startswith(bucket.PROBE)])
      return
    for name in ('model', 'best'):
      folders.recover(self.path / name, saved_model.CONTENTS)
    for path in [*self.path.iterdir(), *self.path.glob('validation/.*')]:
      if _UNFINISHED.fullmatch(path.name):
        if path.is_dir():
          shutil.rmtree(path)
        else:
          path.unlink()


def differences(old: Any, new: Any, trail: str = 'config', *, free: Collection[str] = FREE) -> list[str]:
  """Describes the fields that differ between two configs (plain containers), except for those in `free`."""
  if trail in free or trail in FORMER:
    return []
  if isinstance(old, dict) and isinstance(new, dict):
    return [
      line
      for name in sorted(set(old) | set(new))
      for line in differences(old.get(name), new.get(name), f'{trail}.{name}', free=free)
    ]
  return [] if old == new else [f'{trail} was {old!r}, is {new!r}']
