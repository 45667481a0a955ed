"""Training logs: progress bar, TensorBoard without TensorFlow, JSON lines."""

import errno
import json
import math
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ditsam_jax.storage.bucket import AnyPath, BucketPath
from ditsam_jax.terminal import progress
from ditsam_jax.training import events
from ditsam_jax.training.uploaded import Uploaded


class RunLog:
  """Logs a run to `train_log.jsonl` and `tensorboard/` in `workdir`, and to a progress bar on stderr.

  A resumed run continues the files, without the records of steps that it repeats. A full disk does not stop the run:
  records wait in memory until there is space.

  Args:
    workdir: a folder used by this run only.
    first_step: number of completed steps; later records are removed.
    evaluated: the last completed step with an evaluation.
    total_steps: length of the run.
  """

  def __init__(self, workdir: AnyPath, *, first_step: int, evaluated: int, total_steps: int):
    lines = workdir / 'train_log.jsonl'
    self._warned = False
    self._bar = progress(total_steps, 'training', 'steps', initial=first_step)
    self._shown: dict[str, str] = {}
    self._lines = _growing(lines)
    self._events = _growing(
      workdir / 'tensorboard' / f'events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}',
      parts=True,
    )
    self._write(self._lines.replace_by, lambda content: _kept(content, first_step, evaluated))
    self._write(self._events.add, events.start())
    # A run that was killed before its first checkpoint has left events, too.
    self._write(self._events.add, events.restart(first_step + 1 if first_step else 0))

  def __enter__(self) -> 'RunLog':
    return self

  def __exit__(self, *exception):
    self._bar.close()
    self._write(self._events.close)
    self._write(self._lines.close)

  def store(self) -> None:
    """Stores all records; called before a checkpoint, so that no resumed run lacks earlier records."""
    self._write(self._events.flush)
    self._write(self._lines.flush)

  def advance(self) -> None:
    """Advances the progress bar by one step."""
    self._bar.update()

  def scalars(self, step: int, values: dict[str, float], group: str = 'train') -> None:
    """Logs the scalars of a step everywhere; non-finite values become null in the JSON lines."""
    values = {f'{group}/{name}': value for name, value in values.items()}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._write(self._lines.add, json.dumps({'step': step, **finite}).encode() + b'\n')
    self._write(self._events.add, b''.join(events.scalar(step, name, value) for name, value in values.items()))
    for name, label in (('train/loss', 'loss'), ('val/mIoU', 'val mIoU')):
      if name in values:
        self._shown[label] = f'{values[name]:.4g}'
    self._bar.set_postfix(self._shown, refresh=False)

  def panel(self, step: int, image: np.ndarray) -> None:
    """Logs an image of predictions on validation samples, uint8 [h, w, 3], to TensorBoard."""
    self._write(self._events.add, events.image(step, 'validation', image))

  def say(self, text: str) -> None:
    """Prints a line above the progress bar."""
    self._bar.write(text, file=sys.stderr)

  def _write(self, write, *what) -> None:
    try:
      write(*what)
    except OSError as error:
      if not self._warned:
        self.say(
          f'warning: the log of the run cannot be written ({error.strerror or error}); training continues, and lines '
          f'are kept until there is room'
        )
      self._warned = True


class SilentLog:
  """Replaces RunLog on all hosts but the first."""

  def __enter__(self) -> 'SilentLog':
    return self

  def __exit__(self, *exception):
    pass

  def advance(self) -> None:
    pass

  def store(self) -> None:
    pass

  def scalars(self, step: int, values: dict[str, float], group: str = 'train') -> None:
    pass

  def panel(self, step: int, image: np.ndarray) -> None:
    pass


class _Appended:
  """A file to which complete records are appended; records that don't fit are retried, in order, with the next one."""

  def __init__(self, path: Path):
    self._path = path
    self._waiting: list[bytes] = []

  def add(self, record: bytes) -> None:
    """Appends a record after pending ones. If it raises OSError, the record stays pending."""
    self._waiting.append(record)
    self.flush()

  def replace_by(self, change: Callable[[bytes], bytes]) -> None:
    """Truncates the file, if it exists, to the beginning of its content that `change` returns. Raises OSError."""
    if not os.path.lexists(self._path):
      return
    _check_file(self._path)
    os.truncate(self._path, len(change(self._path.read_bytes())))

  def close(self) -> None:
    """Writes pending records. Raises OSError."""
    self.flush()

  def flush(self) -> None:
    """Writes pending records. Raises OSError."""
    if not self._waiting:
      return
    self._path.parent.mkdir(parents=True, exist_ok=True)
    _check_file(self._path)
    with self._path.open('ab', buffering=0) as file:
      while self._waiting:
        end = file.seek(0, os.SEEK_END)
        try:
          if file.write(self._waiting[0]) < len(self._waiting[0]):  # the disk filled up in the middle of the record
            raise OSError(None, 'there is no room left')
        except OSError:
          file.truncate(end)
          raise
        del self._waiting[0]


def _check_file(path: Path) -> None:
  """Raises OSError if a path is a device or a pipe, on which opening could block."""
  if path.exists() and not path.is_file():
    raise OSError(errno.EINVAL, f'{path.name} is not a file')


def _growing(path: AnyPath, *, parts: bool = False) -> '_Appended | Uploaded':
  return Uploaded(path, parts=parts) if isinstance(path, BucketPath) else _Appended(path)


def _kept(content: bytes, first_step: int, evaluated: int) -> bytes:
  """The content up to the first record of a later step or evaluation, without an incomplete last line."""
  size = 0
  for line in content.splitlines(keepends=True):
    if not line.endswith(b'\n') or _is_later(line, first_step, evaluated):
      break
    size += len(line)
  return content[:size]


def _is_later(line: bytes, first_step: int, evaluated: int) -> bool:
  try:
    record = json.loads(line)
    return record['step'] > (evaluated if any(name.startswith('val/') for name in record) else first_step)
  except (ValueError, TypeError, KeyError, RecursionError):  # not one of our lines; keep it
    return False
