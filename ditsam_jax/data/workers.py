"""Worker processes that make data: in order, a bounded stretch ahead, and none of them outlives the main process."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing.context
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import cv2

from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PROCESSES

AHEAD = 4  # pieces of work a process may be ahead of the reader: bounds memory


def check_processes(number: int, name: str = 'processes') -> None:
  """Raises UserError unless that many worker processes are a sensible number."""
  if not 0 <= number <= MAX_PROCESSES:
    raise UserError(f'{name}={number}: expected 0 to {MAX_PROCESSES}; more than the number of cores gains nothing')


def map_ordered(function: Callable[[Any], Any], items: Iterable[Any], processes: int) -> Generator[Any, None, None]:
  """`map` by that many worker processes; 0 takes this one. `function` and its results are pickled.

  Raises:
    UserError: a worker ended early.
  """
  check_processes(processes)
  if not processes:
    yield from map(function, items)
    return
  # Started afresh, not forked: OpenCV and JAX have threads by now, and a fork could leave their locks taken.
  context = _Spawn()
  pool = concurrent.futures.ProcessPoolExecutor(processes, context, _be_a_worker)
  try:
    items = iter(items)
    with _signals_held():
      waiting = collections.deque(pool.submit(function, item) for item in itertools.islice(items, AHEAD * processes))
    while waiting:
      done = waiting.popleft().result()
      waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
      yield done
  except concurrent.futures.BrokenExecutor as error:
    context.kill()  # the pool waits for the others, whom its SIGTERM does not reach
    raise UserError(
      f'a worker process ended early ({error}); with less memory take fewer processes, and call this under if '
      f"__name__ == '__main__'"
    ) from error
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # they end after what they have begun


class _Spawn(multiprocessing.context.SpawnContext):
  """Starts processes afresh, and knows them."""

  def __init__(self):
    super().__init__()
    self._made = []

  def Process(self, *arguments: Any, **options: Any) -> multiprocessing.process.BaseProcess:  # noqa: N802
    process = super().Process(*arguments, **options)
    self._made.append(process)
    return process

  def kill(self) -> None:
    for process in self._made:
      with contextlib.suppress(AttributeError, ValueError):  # not started, or over
        process.kill()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
  """Processes started meanwhile never see Ctrl-C and SIGTERM, which may go to all of a group: the main one ends them.

  Of a pool whose workers end by themselves amid a message, Python 3.11 waits for ever.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_a_worker() -> None:
  cv2.setNumThreads(1)
  # A main process that is killed cannot tell its workers, which would wait for work forever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  if parent := multiprocessing.parent_process():
    parent.join()
  os._exit(1)
