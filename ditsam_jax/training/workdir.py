"""A run's own folder: for one process at a time, and for one config."""

import fcntl
import json
import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import jax

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import UNFINISHED, write_json
from ditsam_jax.terminal import say

# Where things are, how fast they go, what is kept and told: fields that may change from one command to the next.
FREE = (
  'config.data.data_dir',
  'config.data.threads',
  'config.data.processes',
  'config.data.in_memory',
  'config.log_every',
  'config.checkpoint_every',
  'config.keep_checkpoints',
  'config.keep_best',
  'config.on_save_failure',
  'config.max_skipped',
  'config.eval_batch_size',
  'config.mesh',
  'config.remat',
  'config.scan',
  'config.attention',
)
_FORMER = ('config.model.attention',)  # fields that runs of earlier versions have, and that were free

# Of models, JSON, pictures and batches that are written under another name and renamed.
_UNFINISHED = re.compile(r'\.(model|best)\.(writing|retired)-\d+|' + UNFINISHED)


class Workdir:
  """A folder that can be claimed; the claim ends with the context, or with the process, however that ends."""

  def __init__(self, path: Path):
    self.path = path
    self._lock: int | None = None

  def __enter__(self) -> 'Workdir':
    return self

  def __exit__(self, *exception):
    if self._lock is not None:
      os.close(self._lock)
      self._lock = None

  def claim(self, config: dict[str, Any]) -> None:
    """Makes the folder and notes the config (plain containers) in it, or checks that it is this run's.

    Raises:
      UserError: another process trains there, or it holds a run of another config, or cannot be written.
    """
    file = self.path / 'config.json'
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      if jax.process_index() == 0:  # the locks of some network file systems hold for one host at a time
        self._take_lock()
        self._clear_leftovers()
      if file.exists():
        changed = differences(json.loads(file.read_text()), config)
        if changed:
          raise UserError(
            f'workdir {str(self.path)!r} holds a run of another config ({"; ".join(changed[:4])}); '
            f'choose another --workdir or delete this one'
          )
      if jax.process_index() == 0:
        write_json(file, config)
    except (OSError, ValueError) as error:
      raise UserError(f'workdir {str(self.path)!r} cannot be used: {error}') from error

  def _take_lock(self) -> None:
    self._lock = os.open(self.path / '.lock', os.O_RDWR | os.O_CREAT, 0o666)
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go by the system when the process ends
    except BlockingIOError as error:
      owner = os.read(self._lock, 200).decode(errors='replace').strip()
      raise UserError(
        f'workdir {str(self.path)!r} is in use by {owner or "another process"}; wait for it, end it, or '
        f'choose another --workdir'
      ) from error
    except OSError as error:  # a file system without locks
      say(f'{self.path} cannot be locked ({error.strerror}); take care that one process alone trains there')
      return
    os.truncate(self._lock, 0)
    os.write(self._lock, f'process {os.getpid()} on {socket.gethostname()}\n'.encode())

  def _clear_leftovers(self) -> None:
    """Removes what killed processes had not finished; each has a name of its own, so they would pile up."""
    for path in self.path.iterdir():
      if _UNFINISHED.fullmatch(path.name):
        if path.is_dir():
          shutil.rmtree(path)
        else:
          path.unlink()


def differences(old: Any, new: Any, trail: str = 'config') -> list[str]:
  """Fields that differ between two configs as plain containers, but for those that are FREE to change."""
  if trail in FREE + _FORMER:
    return []
  if isinstance(old, dict) and isinstance(new, dict):
    return [
      line
      for name in sorted(set(old) | set(new))
      for line in differences(old.get(name), new.get(name), f'{trail}.{name}')
    ]
  return [] if old == new else [f'{trail} was {old!r}, is {new!r}']
