"""A run without a model, which tests start and kill often: the loop of train.py around checkpoints, log and claim."""

import os
import sys

import jax.numpy as jnp
import numpy as np

from ditsam_jax.storage import bucket
from ditsam_jax.storage.paths import any_path
from ditsam_jax.training.checkpoint import Checkpoints, Progress
from ditsam_jax.training.logging import RunLog
from ditsam_jax.training.step import TrainState
from ditsam_jax.training.workdir import Workdir
from tests.training.checkpoints import numbers

CONFIG = {'seed': 3, 'total_steps': 30}
EVERY = 3  # steps from one checkpoint to the next


def fresh_state():
  weights = {'a.kernel': jnp.zeros((64, 8)), 'b.bias': jnp.zeros(8)}
  return TrainState(jnp.asarray(0), weights, dict(weights), {'count': jnp.asarray(0)}, {}, jnp.zeros(2, int))


def updated(state, batch):
  """A step whose result depends on all batches before, and on their order."""
  step = int(state.step) + 1
  rng = np.random.default_rng((int(batch), step))
  params = {
    name: jnp.asarray(np.asarray(value) * np.float32(0.9) + rng.normal(size=value.shape).astype(np.float32))
    for name, value in state.params.items()
  }
  return state._replace(step=jnp.asarray(step), params=params, ema=state.params)


def live(workdir, environment=None, errors=None):
  """Trains to the end; returns the final weights."""
  if environment:  # in a process of its own
    os.environ.update(environment)
    bucket._IDLE = 2  # seconds; requests that are never answered are part of the test
  if errors:
    sys.stderr = open(errors, 'a', buffering=1)
  path = any_path(workdir)
  state, batches, progress = fresh_state(), numbers(), Progress()
  with Workdir(path) as claimed:
    claimed.check_place()
    claimed.claim(CONFIG)
    with Checkpoints(path, 2, CONFIG, 'stop', claimed.still_ours) as checkpoints:
      if checkpoints.latest_step is not None:
        state, progress = checkpoints.restore(state, batches)
      step = int(state.step)
      with RunLog(path, first_step=step, evaluated=0, total_steps=CONFIG['total_steps']) as log:
        while step < CONFIG['total_steps']:
          batch = next(batches)
          state = updated(state, batch)
          step += 1
          log.scalars(step, {'loss': float(state.params['b.bias'].sum())})
          if step % EVERY == 0:
            log.store()
            checkpoints.save(state, batches, progress)
  return {name: np.asarray(value) for name, value in state.params.items()}
