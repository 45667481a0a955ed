"""Reads ahead of the device and writes behind it, in threads, in order, with bounded queues."""

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
MOST = 64  # items on their way
MOST_BYTES = 2**29  # of pixels among them; images may have a quarter of a gigabyte


def images_ahead(requests: Iterable[Request], threads: int = THREADS) -> Iterator[tuple[Request, Any]]:
  """(request, pixels uint8 [h, w, 3]) in order, or (request, UserError) where the image cannot be read.

  Requests that follow each other on one image share it, the very array.
  """
  room = _Room()

  def read(path: str, turn: int) -> Any:
    room.wait_for_space(turn)
    pixels = _attempted(read_image, path)
    room.take(_bytes(pixels))
    return pixels

  def next_one() -> tuple[Request, Any]:
    request, turn, future = waiting.popleft()
    room.is_wanted(turn)
    pixels = future.result()
    if not waiting or waiting[0][1] != turn:
      room.take(-_bytes(pixels))
    return request, pixels

  with ThreadPoolExecutor(threads, 'read') as pool:
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
      room.close()
      pool.shutdown(wait=False, cancel_futures=True)


class _Room:
  """How much of MOST_BYTES the images that wait take: reading stops where it is used up, but for the one wanted next."""

  def __init__(self) -> None:
    self._used, self._wanted, self._open = 0, 0, True
    self._changed = threading.Condition()

  def wait_for_space(self, turn: int) -> None:
    with self._changed:
      self._changed.wait_for(lambda: self._used < MOST_BYTES or turn <= self._wanted or not self._open)

  def is_wanted(self, turn: int) -> None:
    with self._changed:
      self._wanted = turn
      self._changed.notify_all()

  def take(self, size: int) -> None:
    with self._changed:
      self._used += size
      self._changed.notify_all()

  def close(self) -> None:
    with self._changed:
      self._open = False
      self._changed.notify_all()


def in_order(
  function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int], threads: int = THREADS
) -> Generator[tuple[T, R | UserError], None, None]:
  """Yields (item, function(item) or the UserError it raised) in order, while items go on coming.

  Where `items` end with an exception, Ctrl-C too, what has been begun is yielded before it is raised.

  `size`: bytes that an item holds until it is done.
  """
  end: BaseException | None = None
  with ThreadPoolExecutor(threads, 'write') as pool:
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
