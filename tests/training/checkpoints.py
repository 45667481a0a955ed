"""Small train states and their checkpoints, for tests."""

import os

import grain
import jax
import jax.numpy as jnp

from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.step import TrainState

CONFIG = {'seed': 3, 'optimizer': {'name': 'adam'}}


def numbers():
  """A fast iterator, for tests that do not train."""
  return iter(grain.MapDataset.range(100).to_iter_dataset())


def small_state(step, size=64):
  """A train state of two arrays that depend on the step."""
  weights = {'a.kernel': jnp.full((size, 8), float(step)), 'b.bias': jnp.arange(8.0) + step}
  average = jax.tree.map(jnp.copy, weights)
  return TrainState(jnp.asarray(step, jnp.int32), weights, average, {'count': jnp.asarray(step)}, {}, jnp.zeros(2, int))


def open_(workdir, keep=2, config=CONFIG, **more):
  return Checkpoints(workdir, keep, config, **more)


def saved(workdir):
  return sorted(path.name for path in (workdir / 'checkpoints').iterdir())


def save_steps(workdir, *steps, progress=Progress(), **more):
  """Saves one checkpoint per step."""
  with open_(workdir, **more) as checkpoints:
    batches = numbers()
    for step in steps:
      next(batches)
      checkpoints.save(small_state(step), batches, progress)


def resumed(workdir):
  """Restores the newest intact checkpoint; returns its step, its first weight, and the iterator's next element."""
  with open_(workdir) as checkpoints:
    batches = numbers()
    state, _ = checkpoints.restore(small_state(0), batches)
  return int(state.step), float(state.params['a.kernel'][0, 0]), next(batches)


def largest_file(folder):
  return max((path for path in folder.rglob('*') if path.is_file()), key=lambda path: path.stat().st_size)


def flip(checkpoint):
  file = largest_file(checkpoint / 'state')
  data = bytearray(file.read_bytes())
  data[len(data) // 2] ^= 1
  file.write_bytes(data)


def truncate(checkpoint):
  file = largest_file(checkpoint / 'state')
  os.truncate(file, file.stat().st_size // 2)
