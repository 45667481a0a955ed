"""One user at a time for a folder in a bucket: an object that its holder renews.

The system releases a lock on a disk when a process dies. A bucket has no such lock, so the holder renews the object,
and another process may take over one that has not been renewed for `LEASE` seconds. Ages are differences of the store's
own times, so clocks of hosts do not matter. All writes are conditional on the version seen before, so of two that take
over, one succeeds, and a holder that was paused for longer than its lease notices.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.terminal import printable, say

LEASE = 60.0  # seconds without renewal after which a holder counts as dead
_RENEWALS = 4  # per lease
_ANSWER = 10.0  # seconds for a renewal, which is tried again while the lease lasts
_PAUSE = 1.0  # seconds between tries


class Lease:
  """A claim on a folder, for as long as the context lasts.

  Args:
    file: the lock object.
    what: what error messages call the folder: "workdir 'gs://...'".
    seconds: length of the lease.
    lost: called in a thread if another process has taken over. By default, the process ends with a line and status 1,
      because it must not write any more.
  """

  def __init__(self, file: BucketPath, what: str, seconds: float = LEASE, lost: Callable[[], Any] | None = None):
    self._file, self._what, self._seconds = file, what, seconds
    self._lost = lost or self._end_process
    self._me = f'process {os.getpid()} on {socket.gethostname()}'
    self._token = secrets.token_hex(8)
    self._version = ''
    self._renewed = time.monotonic()
    self._warned = False
    self._writing = threading.Lock()
    self._released = threading.Event()

  def __enter__(self) -> 'Lease':
    """Claims the folder. Raises UserError if another process holds it, OSError if the bucket refuses."""
    self._claim()
    threading.Thread(target=self._renew, daemon=True).start()
    return self

  def __exit__(self, *exception):
    self._released.set()
    with self._writing, contextlib.suppress(OSError, bucket.Changed):
      self._write(released=True)

  def check(self) -> None:
    """Renews the lease before something only its holder may do.

    Raises OSError if it is lost, or cannot be renewed before another process may take over.
    """
    with self._writing:
      while True:
        try:
          return self._write()
        except bucket.Changed:
          raise OSError(None, f'{self._what} was taken over by {self._holder()}') from None
        except OSError as error:
          if time.monotonic() + _PAUSE + _ANSWER > self._renewed + self._seconds:
            raise OSError(None, f'{self._what}: the claim cannot be renewed ({error.strerror})') from error
        time.sleep(_PAUSE)

  def _claim(self) -> None:
    waited = False
    while True:
      version, holder = self._look()
      try:
        alive = _is_alive(holder) if version else False
        if alive or alive is None and not (waited := self._outlives(version, holder)):
          raise UserError(
            f'{self._what} is in use by {self._named(holder)}; wait for it, end it, or choose another place'
          )
        started = time.monotonic()
        self._version = bucket.write(self._file, self._content(), version=version)
        self._renewed = started
      except bucket.Changed:  # by its holder, or by another process that claims it too
        continue
      if version and not holder.get('released'):
        reason = 'has not renewed its claim' if waited else 'has ended without releasing it'
        say(f'{self._what}: taking over from {self._named(holder)}, which {reason}')
      return

  def _write(self, *, released: bool = False) -> None:
    """Renews or releases the lease. Raises OSError after some seconds, Changed if another process has taken over."""
    content = self._content(released=released)
    while True:
      started = time.monotonic()  # from when the store may count, at the earliest
      try:
        self._version = bucket.write(self._file, content, version=self._version, seconds=_ANSWER)
        self._renewed, self._warned = started, False
        return
      except bucket.Changed:
        version, holder = self._look(_ANSWER)
        if holder.get('token') != self._token:
          raise
        self._version = version  # our own earlier renewal, whose answer never came

  def _look(self, seconds: float | None = None) -> tuple[str, dict[str, Any]]:
    """Version and content of the lock; '' if there is none."""
    try:
      content, version = bucket.read_version(self._file, seconds)
    except FileNotFoundError:
      return '', {}
    try:
      holder = json.loads(content)
    except ValueError:
      holder = None
    return version, holder if isinstance(holder, dict) else {}

  def _outlives(self, version: str, holder: dict[str, Any]) -> bool:
    """Waits until the holder's lease has expired; returns False at once if it is renewed meanwhile."""
    seconds = holder.get('seconds')
    lease = float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 3600 else LEASE
    left = lease - bucket.age(self._file)
    if left > 0:
      say(f'{self._what} is claimed by {self._named(holder)}; waiting up to {left:.0f} s to see whether it is alive')
    end = time.monotonic() + left
    while time.monotonic() < end:
      time.sleep(min(1.0, max(0.0, end - time.monotonic()), lease / _RENEWALS))
      now = bucket.info(self._file)
      if now is None or now.version != version:
        return False
    return True

  def _renew(self) -> None:
    """Runs in the background. Retries network errors; a takeover in the meantime is detected."""
    pause = self._seconds / _RENEWALS
    while not self._released.wait(pause):
      with self._writing:
        if self._released.is_set():
          return
        try:
          self._write()
          pause = self._seconds / _RENEWALS
        except OSError as error:
          self._warn(error)
          pause = min(_PAUSE, self._seconds / _RENEWALS)
        except bucket.Changed:
          break
    if not self._released.is_set():
      self._lost()

  def _warn(self, error: OSError) -> None:
    """Reports once, before the lease expires, that it cannot be renewed."""
    since = time.monotonic() - self._renewed
    if since > self._seconds / 2 and not self._warned:
      self._warned = True
      say(
        f'warning: {self._what}: the claim could not be renewed for {since:.0f} s ({error.strerror}); after '
        f'{self._seconds:.0f} s another process may take over'
      )

  def _end_process(self) -> None:
    say(f'error: {self._what} was taken over by {self._holder()}; this process ends')
    os._exit(1)  # other threads may be writing

  def _content(self, *, released: bool = False) -> bytes:
    owner = {'owner': self._me, 'seconds': self._seconds, 'released': released, 'token': self._token}
    return json.dumps(owner | {'renewal': secrets.token_hex(8)} | _identity()).encode()

  def _holder(self) -> str:
    with contextlib.suppress(OSError):
      return self._named(self._look(_ANSWER)[1])
    return 'another process'

  def _named(self, holder: dict[str, Any]) -> str:
    return printable(holder.get('owner') or 'another process', 80)


def _is_alive(holder: dict[str, Any]) -> bool | None:
  """Whether a lock's holder is alive; None if it runs on another machine."""
  if holder.get('released') is True:
    return False
  here = _identity()
  if here['machine'] and holder.get('machine') == here['machine'] and type(holder.get('pid')) is int:
    return _started(holder['pid']) == holder.get('started')
  return None


def _identity() -> dict[str, Any]:
  """This process, as others on the same machine can find it; 'machine' is '' where that is impossible."""
  try:
    boot = Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    machine = f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:  # not Linux
    machine = ''
  return {'machine': machine, 'pid': os.getpid(), 'started': _started(os.getpid())}


def _started(pid: int) -> str | None:
  """When a process of this machine was started, in the kernel's ticks; None if there is none of that number."""
  try:
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
  except OSError:
    return None
  return None if fields[0] in 'ZX' else fields[19]
