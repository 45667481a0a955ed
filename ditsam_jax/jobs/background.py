"""Reads images ahead of the device and writes results behind it: threads with bounded queues that keep the order."""

import collections
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ditsam_jax.errors import UserError
from ditsam_jax.jobs.requests import Request
from ditsam_jax.storage.image_files import read_image

T = TypeVar('T')
R = TypeVar('R')

THREADS = min(8, max(2, os.cpu_count() or 1))
MOST = 64  # items in flight
MOST_BYTES = 2**29  # of pixels in flight; a single image may take a quarter of a gigabyte


def images_ahead(requests: Iterable[Request]) -> Iterator[tuple[Request, Any]]:
  """Yields (request, pixels uint8 [h, w, 3]) in order, or (request, UserError) if the image cannot be read.

  Consecutive requests for the same image share one array.
  """
  budget = _MemoryBudget()

  def read(path: str, turn: int) -> Any:
    budget.wait(turn)
    pixels = _attempted(read_image, path)
    budget.add(_bytes(pixels))
    return pixels

  def next_one() -> tuple[Request, Any]:
    request, turn, future = waiting.popleft()
    budget.set_next(turn)
    pixels = future.result()
    if not waiting or waiting[0][1] != turn:
      budget.add(-_bytes(pixels))
    return request, pixels

  with ThreadPoolExecutor(THREADS, 'read') as pool:
    waiting: collections.deque[tuple[Request, int, Future]] = collections.deque()
    image, turn, future = None, -1, Future()
    try:
      for request in requests:
        if request.image != image or not waiting:
          image, turn = request.image, turn + 1
          future = pool.submit(read, image, turn)
        waiting.append((request, turn, future))
        while len(waiting) >= MOST:
          yield next_one()
      while waiting:
        yield next_one()
    finally:
      budget.close()
      pool.shutdown(wait=False, cancel_futures=True)


class _MemoryBudget:
  """Limits the pixels in flight to MOST_BYTES; readers block beyond it, except for the image needed next."""

  def __init__(self) -> None:
    self._used, self._next, self._open = 0, 0, True
    self._changed = threading.Condition()

  def wait(self, turn: int) -> None:
    with self._changed:
      self._changed.wait_for(lambda: self._used < MOST_BYTES or turn <= self._next or not self._open)

  def set_next(self, turn: int) -> None:
    with self._changed:
      self._next = turn
      self._changed.notify_all()

  def add(self, size: int) -> None:
    with self._changed:
      self._used += size
      self._changed.notify_all()

  def close(self) -> None:
    with self._changed:
      self._open = False
      self._changed.notify_all()


def in_order(
  function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int]
) -> Generator[tuple[T, R | UserError], None, None]:
  """Calls `function` in threads; yields (item, its result or UserError) in order.

  If `items` raises an exception, including KeyboardInterrupt, items in flight are completed and yielded first.

  `size` returns the bytes that an item keeps in memory until it is done.
  """
  end: BaseException | None = None
  with ThreadPoolExecutor(THREADS, 'write') as pool:
    waiting: collections.deque[tuple[T, int, Future]] = collections.deque()
    held = 0
    try:
      items = iter(items)
      while True:
        try:
          item = next(items)
        except StopIteration:
          break
        except BaseException as error:
          end = error
          break
        waiting.append((item, size(item), pool.submit(_attempted, function, item)))
        held += waiting[-1][1]
        while waiting and (waiting[0][2].done() or len(waiting) >= MOST or held > MOST_BYTES):
          item, freed, future = waiting.popleft()
          held -= freed
          yield item, future.result()
      while waiting:
        item, _, future = waiting.popleft()
        yield item, future.result()
    finally:
      pool.shutdown(wait=True, cancel_futures=True)
  if end is not None:
    raise end


def _attempted(function: Callable[[T], R], item: T) -> R | UserError:
  try:
    return function(item)
  except UserError as error:
    return error


def _bytes(pixels: Any) -> int:
  return getattr(pixels, 'nbytes', 0)
