"""Shared by the benchmarks: a compiled forward pass, timing of calls, peak memory of the process."""

import functools
import time
from collections.abc import Callable
from pathlib import Path

import jax
from flax import nnx

from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.execution import Execution


def jitted_forward(model: DitSam, execution: Execution = Execution()) -> Callable[..., jax.Array]:
  """Returns a compiled function from images, token ids and mask to logits, with the model's weights bound."""
  graph, weights = nnx.split(model)

  def forward(weights, *inputs):
    return nnx.merge(graph, weights)(*inputs, execution=execution).logits

  return functools.partial(jax.jit(forward), weights)


def peak_of_process() -> float:
  """Returns the peak resident memory of this process, GB."""
  # Not getrusage: its peak includes that of the parent process.
  line = next(line for line in Path('/proc/self/status').read_text().split('\n') if line.startswith('VmHWM:'))
  return round(int(line.split()[1]) / 1e6, 2)


def timed(function: Callable[[], object], steps: int, *, warm: bool = False) -> list[float]:
  """Seconds of calls that wait for their result; the first one is not counted, unless all is `warm`."""
  seconds = []
  for _ in range(steps + (not warm)):
    started = time.perf_counter()
    function()
    seconds.append(time.perf_counter() - started)
  return seconds if warm else seconds[1:]
