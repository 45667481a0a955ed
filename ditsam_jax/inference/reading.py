"""Prepares the images of prompts in threads, ahead of the device."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ditsam_jax.inference.prompts import Prompt

Asked = TypeVar('Asked')
Prepared = TypeVar('Prepared')


def read_ahead(
  requests: Iterable[tuple[Any, Asked]],
  prompt: Callable[[Asked], Prompt],
  prepare: Callable[[Any], Prepared],
  pool: concurrent.futures.Executor,
  ahead: int,
) -> Iterator[tuple[Prepared, Prompt]]:
  """Yields the prepared image and the checked prompt of each request, in order.

  Consecutive requests with the same image object or path share what `prepare` returns.

  Args:
    requests: images, and what is asked about them; read in the caller's thread.
    prompt: checks what is asked.
    prepare: reads an image; called in the pool's threads.
    pool: the threads.
    ahead: how many requests are read ahead of the one yielded.

  Raises:
    Exception: what `requests`, `prompt` or `prepare` raise, after the earlier requests are yielded.
  """
  waiting: collections.deque[tuple[concurrent.futures.Future[Prepared], Prompt]] = collections.deque()
  last_image, last, failure = None, None, None
  requests = iter(requests)
  while True:
    try:
      image, asked = next(requests)
      checked = prompt(asked)
    except StopIteration:
      break
    except Exception as error:
      failure = error
      break
    if last is None or not _same_image(image, last_image):
      last_image, last = image, pool.submit(prepare, image)
    waiting.append((last, checked))
    if len(waiting) > ahead:
      future, checked = waiting.popleft()
      yield future.result(), checked
  while waiting:
    future, checked = waiting.popleft()
    yield future.result(), checked
  if failure is not None:
    raise failure


def _same_image(image: Any, other: Any) -> bool:
  """Whether two images are the same object, or the same path."""
  return image is other or isinstance(image, str | Path) and isinstance(other, str | Path) and image == other
