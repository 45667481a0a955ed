"""An ordered map over worker processes, with bounded read-ahead; workers never outlive the main process."""

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

AHEAD = 4  # items per process ahead of the reader, to bound memory


def check_processes(number: int, name: str = 'processes') -> None:
  """Raises UserError unless `number` is a sensible number of worker processes."""
  if not 0 <= number <= MAX_PROCESSES:
    raise UserError(f'{name}={number}: expected 0 to {MAX_PROCESSES}; more than the number of cores is no faster')


def map_ordered(function: Callable[[Any], Any], items: Iterable[Any], processes: int) -> Generator[Any, None, None]:
  """Like `map`, in worker processes; 0 runs in this process. `function`, items and results are pickled.

  Raises:
    UserError: a worker died.
  """
  check_processes(processes)
  if not processes:
    yield from map(function, items)
    return
  # Spawned, not forked: OpenCV and JAX already have threads, and a fork could leave their locks held.
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
    context.kill()  # the pool waits for the other workers, which block its SIGTERM
    raise UserError(
      f'a worker process ended early ({error}); with less memory take fewer processes, and call this under if '
      f"__name__ == '__main__'"
    ) from error
  finally:
    pool.shutdown(wait=False, cancel_futures=True)  # workers exit after their current item


class _Spawn(multiprocessing.context.SpawnContext):
  """Spawns processes and keeps track of them."""

  def __init__(self):
    super().__init__()
    self._made = []

  def Process(self, *arguments: Any, **options: Any) -> multiprocessing.process.BaseProcess:  # noqa: N802
    process = super().Process(*arguments, **options)
    self._made.append(process)
    return process

  def kill(self) -> None:
    for process in self._made:
      with contextlib.suppress(AttributeError, ValueError):  # not started, or already closed
        process.kill()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
  """Blocks Ctrl-C and SIGTERM in processes started in this context; the main process ends them instead.

  Signals may be sent to the whole process group, and if a worker dies in the middle of a message, Python 3.11 waits for
  its pool forever.
  """
  before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _be_a_worker() -> None:
  cv2.setNumThreads(1)
  # If the main process is killed, workers would otherwise wait for work forever.
  threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
  if parent := multiprocessing.parent_process():
    parent.join()
  os._exit(1)
