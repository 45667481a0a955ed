"""Batches the prompts of all clients: one thread feeds the device, a few others finish predictions.

Prompts of one kind (`engine.Row.kind`) run together. Because the engine pads batches, a few prompts are cheaper one by
one on some devices; the smallest number for which a batch is faster is measured after compiling.
"""

import collections
import concurrent.futures
import dataclasses
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable
from typing import Any

from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.results import Prediction
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.metrics import Metrics
from ditsam_jax.serving.refusals import Refused

_UNDER_WAY = 2  # batches on the device or being finished
_FINISHERS = min(4, os.cpu_count() or 1)
_PREPARED = 32  # images waiting to be encoded by an idle device


@dataclasses.dataclass(eq=False)
class _Asked:
  client: str
  framed: Framed
  prompt: Prompt
  kind: Hashable
  answer: Callable[[Prediction], Any]
  future: concurrent.futures.Future
  since: float


class Batcher:
  """Runs prompts in batches until it is closed."""

  def __init__(self, segmenter: Segmenter, limits: Limits, metrics: Metrics):
    self._segmenter, self._limits, self._metrics = segmenter, limits, metrics
    self.size = segmenter.batch_size * len(segmenter.engine.devices)
    self.pays_from: dict[Hashable, int] = {}  # by kind, see `programs.compile_all`; other kinds run one by one
    self._asked: collections.deque[_Asked] = collections.deque()
    self._clients: collections.Counter[str] = collections.Counter()
    self._idle: collections.deque[weakref.ref[Framed]] = collections.deque(maxlen=_PREPARED)
    self._changed = threading.Condition()
    self._closed = False
    self._per_prompt = 0.01  # seconds, moving average
    self._room = threading.Semaphore(_UNDER_WAY)
    self._finishers = concurrent.futures.ThreadPoolExecutor(_FINISHERS, 'finish')
    self._thread = threading.Thread(target=self._run, name='batcher', daemon=True)
    self._thread.start()

  def __len__(self) -> int:
    """Returns the number of waiting prompts."""
    return len(self._asked)

  def submit(
    self, client: str, framed: Framed, prompts: list[Prompt], answer: Callable[[Prediction], Any]
  ) -> list[concurrent.futures.Future]:
    """Queues a client's checked prompts for one image, all or none.

    Args:
      client: identifies the client.
      framed: the image.
      prompts: prompts from `Segmenter.prompt`.
      answer: converts each prediction to an answer, in another thread.

    Returns:
      A future for each answer. Prompts cancelled before they start are not computed.

    Raises:
      Refused: this client (429) or all clients together (503) have too many prompts waiting.
    """
    now, limits = time.monotonic(), self._limits
    kinds = [self._segmenter.row(framed, prompt).kind for prompt in prompts]
    with self._changed:
      if self._closed:
        raise Refused(503, 'the service is stopping', 5)
      if self._clients[client] + len(prompts) > limits.per_client:
        raise Refused(429, f'more than {limits.per_client} of your prompts are waiting', self._retry_after())
      if len(self._asked) + len(prompts) > limits.queue:
        raise Refused(503, 'too many prompts are waiting', self._retry_after())
      asked = [
        _Asked(client, framed, prompt, kind, answer, concurrent.futures.Future(), now)
        for prompt, kind in zip(prompts, kinds)
      ]
      self._clients[client] += len(asked)
      self._asked.extend(asked)
      self._changed.notify()
    for each in asked:
      each.future.add_done_callback(lambda _: self._leave(client))
    return [each.future for each in asked]

  def prepare(self, framed: Framed) -> None:
    """Encodes an image in advance, when the device is idle."""
    with self._changed:
      self._idle.append(weakref.ref(framed))
      self._changed.notify()

  def close(self) -> None:
    """Finishes waiting prompts and ends the threads."""
    with self._changed:
      self._closed = True
      self._changed.notify()
    self._thread.join()
    self._finishers.shutdown()

  def _leave(self, client: str) -> None:
    with self._changed:
      self._clients[client] -= 1
      if self._clients[client] <= 0:
        del self._clients[client]

  def _retry_after(self) -> int:
    return min(60, max(1, math.ceil(len(self._asked) * self._per_prompt)))

  def _run(self) -> None:
    self._room.acquire()
    while self._run_next():  # whose variables would keep the last images while it waits for others
      self._room.acquire()

  def _run_next(self) -> bool:
    """Starts a batch or encodes an image; returns False after closing."""
    work = self._next()
    if work is None:
      return False
    if isinstance(work, list):
      self._start(work)
      return True
    try:
      framed = work()
      if framed is not None:
        self._segmenter.engine.embedding(framed.square)
    except Exception:  # reported to the next prompt for this image
      pass
    finally:
      self._room.release()
    return True

  def _next(self) -> 'list[_Asked] | weakref.ref[Framed] | None':
    """Returns a batch of one kind; without prompts, an image to encode; None after closing."""
    with self._changed:
      while True:
        while self._asked:
          if batch := self._batch():
            return batch
        if self._closed:
          return None
        if self._idle:
          return self._idle.pop()
        self._changed.wait()

  def _batch(self) -> list[_Asked]:
    """Returns the first prompt and others of its kind, after a short wait for them; [] if all are cancelled."""
    self._drop_cancelled()
    if not self._asked:
      return []
    first = self._asked[0]
    until = first.since + self._limits.batch_wait
    while not self._closed and (left := until - time.monotonic()) > 0:
      if sum(each.kind == first.kind for each in self._asked) >= self.size:
        break
      self._changed.wait(left)
    batch, others = [], collections.deque()
    for each in self._asked:
      if each.kind != first.kind or len(batch) == self.size:
        others.append(each)
      elif each.future.set_running_or_notify_cancel():
        batch.append(each)
    self._asked = others
    return batch

  def _drop_cancelled(self) -> None:
    while self._asked and self._asked[0].future.cancelled():
      self._asked.popleft()

  def _start(self, batch: list[_Asked]) -> None:
    began = time.monotonic()
    kind = batch[0].kind
    at_once = self._segmenter.batch_size if len(batch) >= self.pays_from.get(kind, math.inf) else 1
    left = [len(batch)]

    def finished(_) -> None:
      left[0] -= 1
      if not left[0]:
        self._per_prompt += 0.1 * ((time.monotonic() - began) / len(batch) - self._per_prompt)
        self._room.release()

    counted = _counted(finished)
    self._metrics.batch(len(batch), at_once, [began - each.since for each in batch])
    try:
      pending = self._segmenter.begin([(each.framed, each.prompt) for each in batch], at_once)
    except BaseException as error:
      for each in batch:
        each.future.set_exception(error)
      self._room.release()
      return
    for each, prediction in zip(batch, pending):
      self._finishers.submit(_finish, each, prediction).add_done_callback(counted)


def _counted(function: Callable) -> Callable:
  """Returns `function` behind a lock."""
  lock = threading.Lock()

  def call(*arguments):
    with lock:
      function(*arguments)

  return call


def _finish(asked: _Asked, prediction: Callable[[], Prediction]) -> None:
  try:
    asked.future.set_result(asked.answer(prediction()))
  except BaseException as error:
    asked.future.set_exception(error)
