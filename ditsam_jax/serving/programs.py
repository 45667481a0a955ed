"""Compiles all programs that requests may need, before the service is ready."""

import concurrent.futures
import itertools
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator

import numpy as np

from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.segmenter import Segmenter

_TURNS = 5  # timed runs; the fastest counts, because other processes may use the machine
_COMPILERS = min(4, os.cpu_count() or 1)


class Stopped(Exception):
  """Raised to stop compiling."""


def prompts_of_all_kinds(segmenter: Segmenter, most_points: int) -> Iterator[Prompt]:
  """Yields prompts of all kinds that clients may send (see `engine.Row.kind`), many kinds repeatedly."""
  side = 4 * segmenter.config.grid
  texts = (None, 'a') if segmenter.config.text_encoder is not None else (None,)
  points = [None, *(np.zeros((count, 2)) for count in range(1, most_points + 1))]
  boxes, masks = (None, [0, 0, 1, 1]), (None, np.zeros((side, side), np.float32))
  for text, some, box, mask, multimask in itertools.product(texts, points, boxes, masks, (False, True)):
    prompt = Prompt(text, some, None, box, mask, multimask)
    if not prompt.is_empty:
      yield segmenter.prompt(prompt)


def compile_all(
  segmenter: Segmenter, most_points: int, progress: Callable[[int, int], None], stopped: Callable[[], bool]
) -> dict[Hashable, int]:
  """Compiles the programs of every kind for one prompt, and of common kinds for a batch, on all devices.

  Args:
    segmenter: the model.
    most_points: maximum number of points per prompt.
    progress: called with the number of compiled programs and the total.
    stopped: returns whether to stop.

  Returns:
    For each kind with batch programs, the smallest number of prompts for which a batch is faster than one by one.

  Raises:
    Stopped: `stopped` returned True.
  """
  kinds: dict[Hashable, Prompt] = {}
  blank = _blank(segmenter)
  for prompt in prompts_of_all_kinds(segmenter, most_points):
    kinds.setdefault(segmenter.row(blank, prompt).kind, prompt)
  batch_size = segmenter.batch_size
  common = [prompt for prompt in kinds.values() if batch_size > 1 and _is_common(prompt)]
  work = [*((prompt, batch_size) for prompt in common), *((prompt, 1) for prompt in kinds.values())]
  # The first of each size, with and without text, also reads text and encodes; the others, in threads, only decode.
  work.sort(key=lambda item: item[0].multimask or item[0].mask is not None or item[0].points is not None)
  images = {size: _blank(segmenter) for _, size in work}
  done = itertools.count(1)

  def compiled(item: tuple[Prompt, int]) -> None:
    if stopped():
      raise Stopped
    _run(segmenter, images[item[1]], *item)
    progress(next(done), len(work))

  first = {(item[0].text is not None, item[1]): item for item in reversed(work)}.values()
  for item in first:
    compiled(item)
  with concurrent.futures.ThreadPoolExecutor(_COMPILERS, 'compile') as pool:
    list(pool.map(compiled, [item for item in work if not any(item is each for each in first)]))
  return {kind: _pays_from(segmenter, prompt, stopped) for kind, prompt in kinds.items() if prompt in common}


def _is_common(prompt: Prompt) -> bool:
  """Returns whether many clients are likely to send such prompts at once: at most one point, no mask."""
  return prompt.mask is None and (prompt.points is None or len(prompt.points) == 1)


def _pays_from(segmenter: Segmenter, prompt: Prompt, stopped: Callable[[], bool]) -> int:
  """Returns the smallest number of prompts for which a batch is faster; more than the batch size if it never is."""
  if stopped():
    raise Stopped
  seconds = []
  for size in (1, segmenter.batch_size):
    image, times = _blank(segmenter), []
    for _ in range(_TURNS + 1):  # the first encodes
      started = time.perf_counter()
      _run(segmenter, image, prompt, size)
      times.append(time.perf_counter() - started)
    seconds.append(min(times))
  return max(2, math.ceil(seconds[1] / seconds[0]))


def _run(segmenter: Segmenter, image: Framed, prompt: Prompt, size: int) -> None:
  for finish in segmenter.begin([(image, prompt)] * (size * len(segmenter.engine.devices)), size):
    finish()


def _blank(segmenter: Segmenter) -> Framed:
  side = segmenter.config.image_size
  return frame(np.zeros((side, side, 3), np.uint8), segmenter.config)
