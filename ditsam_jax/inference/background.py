"""Reading ahead of the device and writing behind it: work done in threads, in order, with bounds."""

import collections
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from ditsam_jax.errors import UserError
from ditsam_jax.inference.requests import Request
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
  with ThreadPoolExecutor(threads, 'read') as pool:
    waiting: collections.deque[tuple[Request, Future]] = collections.deque()
    image, future = None, Future()
    try:
      for request in requests:
        if request.image != image:
          image, future = request.image, pool.submit(_attempted, read_image, request.image)
        waiting.append((request, future))
        while len(waiting) >= MOST or _bytes({id(future): future for _, future in waiting}.values()) > MOST_BYTES:
          yield _taken(waiting)
      while waiting:
        yield _taken(waiting)
    finally:
      pool.shutdown(wait=False, cancel_futures=True)


def in_order(
  function: Callable[[T], R], items: Iterable[T], size: Callable[[T], int], threads: int = THREADS
) -> Iterator[tuple[T, R | UserError]]:
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


def _taken(waiting: collections.deque) -> tuple[Request, Any]:
  request, future = waiting.popleft()
  return request, future.result()


def _bytes(futures: Iterable[Future]) -> int:
  """Of pixels that have been read."""
  done = (future.result() for future in futures if future.done())
  return sum(getattr(pixels, 'nbytes', 0) for pixels in done)
