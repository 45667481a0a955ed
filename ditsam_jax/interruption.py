"""Ctrl-C and SIGTERM end a command with one line, at any moment.

An exception raised in a signal handler appears wherever the main thread is. An import may catch it, Python drops it in
destructors and garbage-collector callbacks, and C code delays it, perhaps for minutes. So there are further measures:

- Before the work (during imports) and after it, there is nothing to clean up, so the process ends at once.
- During the work, KeyboardInterrupt is raised, which removes unfinished files. If Python drops it, it is raised again.
- A thread that is woken by signals ends the process if the main thread does not respond within `_STUCK` seconds, or has
  not ended after `_GRACE` seconds. A second Ctrl-C ends it at once.
- A training run handles the first signal itself, see `deferred`.
- While Python shuts down, signals are ignored: everything is written, and the status is decided.

Files are written to a temporary name and renamed, so a process may end at any point.
"""

import _thread
import atexit
import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NoReturn

_NUMBERS = (signal.SIGINT, signal.SIGTERM)
_ATTENTIVE = 0.5  # seconds for the main thread to handle a signal itself
_STUCK, _GRACE = 2.0, 10.0  # seconds

Taker = Callable[[int], bool]  # returns whether it has handled the signal


class Terminated(KeyboardInterrupt):
  """Raised after SIGTERM."""


def status(number: int) -> int:
  """The exit status of a command that was ended by a signal: 130 for Ctrl-C, 143 for SIGTERM."""
  return 128 + number


class _Watch:
  """The signal handlers and the thread. Only one instance may be installed.

  Args:
    ends_process: True for commands. False, for callers of the library, only raises exceptions.
    numbers: the signals to handle.
  """

  def __init__(self, ends_process: bool, numbers: Iterable[int] = _NUMBERS):
    self.working = not ends_process  # False during a command's imports
    self.asked: int | None = None  # the signal that should end the work
    self.takers: list[Taker] = []
    self.ends_process, self._numbers = ends_process, numbers
    self._raising: int | None = None  # the signal whose exception the main thread will raise
    self._late: set[int] = set()  # signals handled by the thread, for which the main thread's handler is still to run
    # Held from receiving signals to deciding: otherwise both threads may decide about one, as if it were two.
    self._deciding = threading.RLock()
    self._printed = False
    self._before = {}
    self._pipe = os.pipe()
    for end in self._pipe:
      os.set_blocking(end, False)

  def install(self) -> None:
    self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
    _thread.start_new_thread(self._run, ())
    for number in self._numbers:
      before = signal.getsignal(number)
      if before is not signal.SIG_IGN:  # ignored under nohup, and in background jobs of scripts
        self._before[number] = before
        signal.signal(number, self._handle)

  def uninstall(self) -> None:
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._before.items():
      signal.signal(number, handler)
    os.close(self._pipe[1])  # ends the thread

  def raise_again(self) -> None:
    """Raises the exception again a little later, after Python has dropped it."""
    _thread.start_new_thread(self._raise_again, ())

  def tell(self, number: int) -> None:
    """Prints the line once."""
    if not self._printed:
      self._printed = True
      line = 'interrupted' if number == signal.SIGINT else 'terminated (SIGTERM)'
      with contextlib.suppress(OSError):
        os.write(2, f'{chr(10) if os.isatty(2) else ""}{line}\n'.encode())

  def end(self, number: int) -> NoReturn:
    """Ends the process and its workers at once."""
    self.tell(number)
    _end_with_workers(status(number))

  def _handle(self, number, frame) -> None:
    """The handler; Python runs it in the main thread between bytecodes, perhaps once for several signals."""
    with self._deciding:
      received = self._received() or b''
      if not received and number not in self._late:  # another library has consumed the wake-up
        received = [number]
      self._late.discard(number)
      if self._raising is None:
        for each in received:
          self._decide(each)
    if self._raising is not None:
      number, self._raising = self._raising, None
      raise KeyboardInterrupt if number == signal.SIGINT else Terminated

  def _run(self) -> None:
    """The thread; handles signals that the main thread does not handle in time."""
    while True:
      select.select([self._pipe[0]], [], [])
      time.sleep(_ATTENTIVE)
      with self._deciding:
        received = self._received()
        if received is None:
          os.close(self._pipe[0])
          return
        for number in received:
          self._late.add(number)
          self._decide(number)

  def _received(self) -> bytes | None:
    """Returns the signals since the last call, in order; None if the pipe is closed."""
    try:
      data = os.read(self._pipe[0], 1000)
    except BlockingIOError:
      return b''
    return bytes(number for number in data if number in self._numbers) if data else None

  def _decide(self, number: int) -> None:
    if not self.working:
      self.end(number)
    elif self.asked is not None:
      if number == signal.SIGINT and self.ends_process:
        self.end(number)
    elif not any(take(number) for take in self.takers):
      self._raising = number
      if self.ends_process:
        self.asked = number
        _thread.start_new_thread(self._end_in_time, (number,))

  def _end_in_time(self, number: int) -> None:
    time.sleep(_STUCK)
    if self._raising is None:  # the main thread is about to end
      time.sleep(_GRACE - _STUCK)
    self.end(number)

  def _raise_again(self) -> None:
    time.sleep(0.05)
    if self.asked is not None:
      self._raising = self.asked
      _thread.interrupt_main(signal.Signals(self.asked))


_watch: _Watch | None = None


def begin() -> None:
  """Installs the handlers, so signals end this process with one line. Commands call it before slow imports."""
  global _watch
  if _watch is not None or threading.current_thread() is not threading.main_thread():
    return
  _watch = _Watch(ends_process=True)
  _watch.install()
  atexit.register(_ignore)  # runs last
  os.register_at_fork(after_in_child=_forget)
  unraisable, uncaught = sys.unraisablehook, sys.excepthook

  def on_unraisable(dropped):
    if not (_watch and _watch.asked):
      unraisable(dropped)
    elif dropped.exc_type and issubclass(dropped.exc_type, KeyboardInterrupt):
      _watch.raise_again()
    # else: the destructor of an object that the signal left half made, such as an event loop

  def on_uncaught(kind, *rest):
    if _watch and _watch.asked and issubclass(kind, KeyboardInterrupt):
      _watch.end(_watch.asked)
    uncaught(kind, *rest)

  sys.unraisablehook, sys.excepthook = on_unraisable, on_uncaught


def leave_to_parent() -> None:
  """Ignores Ctrl-C in a worker process, which a terminal also sends to it; the parent may need its work to save."""
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def work_begins() -> None:
  """Marks the end of imports: from now on, signals raise KeyboardInterrupt in the main thread."""
  if _watch:
    _watch.working = True


def work_ends() -> int | None:
  """Marks the end of the work. Returns the signal that ended it, or None."""
  if _watch is None:
    return None
  _watch.working = False
  if _watch.asked:
    _watch.tell(_watch.asked)
  return _watch.asked


def end_process(code: int) -> NoReturn:
  """Flushes output and ends this process and its workers at once with an exit status.

  XLA's threads that still compile could crash in Python's shutdown.
  """
  for stream in (sys.stdout, sys.stderr):
    with contextlib.suppress(OSError, ValueError):
      stream.flush()
  _end_with_workers(code)


def _end_with_workers(code: int) -> NoReturn:
  if (multiprocessing := sys.modules.get('multiprocessing')) and hasattr(multiprocessing, 'active_children'):
    with contextlib.suppress(Exception):
      for child in multiprocessing.active_children():
        child.kill()
  os._exit(code)


@contextlib.contextmanager
def nothing_to_undo() -> Iterator[None]:
  """A context in which signals end a command's process at once, as before its work.

  For imports during the work: NumPy and others report exceptions raised in them as a broken installation.
  """
  if _watch is None or not _watch.ends_process or not _watch.working:
    yield
    return
  _watch.working = False
  try:
    yield
  finally:
    _watch.working = True


@contextlib.contextmanager
def deferred(take: Taker, numbers: Iterable[int] = _NUMBERS) -> Iterator[None]:
  """A context in which signals are passed to `take`, which returns whether it will end the work itself.

  `take` may be called in the main thread or, while that is in C code, in another thread.
  """
  global _watch
  alone = _watch is None and threading.current_thread() is threading.main_thread()
  if alone:
    _watch = _Watch(ends_process=False, numbers=numbers)
    _watch.install()
  watch = _watch
  if watch:
    watch.takers.append(take)
  try:
    yield
  finally:
    if watch:
      watch.takers.remove(take)
    if alone and _watch:
      _watch.uninstall()
      _watch = None


def _ignore() -> None:
  """Ignores signals while Python shuts down, which would restore the default handlers: the process keeps its status."""
  _replace_handlers(signal.SIG_IGN)


def _forget() -> None:
  """Removes the handlers in a forked process."""
  global _watch
  if _watch is not None:
    signal.set_wakeup_fd(-1)
    _replace_handlers(signal.SIG_DFL)
    _watch = None


def _replace_handlers(handler: signal.Handlers) -> None:
  for number in _NUMBERS:
    if _watch is not None and signal.getsignal(number) == _watch._handle:
      signal.signal(number, handler)
