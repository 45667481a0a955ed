"""Every mesh trains to the same losses, keeps its share of the state only, and says what it cannot divide."""

import dataclasses
import json

import jax
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
import numpy as np
import pytest

from ditsam_jax.command_line import UserError
from ditsam_jax.ops.partition import AXES
from ditsam_jax.training import sharding
from ditsam_jax.training.config import recipe
from ditsam_jax.training.program import build
from tests.devices import run_on_devices
from tests.small_models import random_batch, small_config


def small_program(mesh, devices=None, dropout=0.1, **changes):
  """The small model's program on a mesh, and its config."""
  config = recipe('refcoco')
  config.update(changes)
  config.data.batch_size = 8
  config.optimizer.update(learning_rate=1e-3, warmup_start=1e-3, warmup_steps=0)
  config.mesh.update(dict(zip(AXES, mesh)))
  model = small_config(fusion_dropout=dropout)
  text = dataclasses.replace(model.text_encoder, dropout=dropout)
  model = small_config(fusion_dropout=dropout, text_encoder=text)
  return build(config, model, sharding.make_mesh(config.mesh, devices))


def losses(program, steps=10):
  state, _ = program.initial_state()
  found = []
  for step in range(steps):
    state, metrics = program.step(state, program.assemble(random_batch(8, seed=step)))
    found.append(float(metrics['loss']))
  return found


ON_EIGHT = """
import dataclasses
import json
import jax
from tests.training.test_sharding import losses, small_program
one = jax.devices()[:1]
found = {
  'alone': losses(small_program((1, 1, 1), one)),
  'data': losses(small_program((8, 1, 1))),
  'fsdp': losses(small_program((1, 8, 1))),
  'all': losses(small_program((2, 2, 2))),
  'rematerialised': losses(small_program((2, 2, 2), remat='block')),
  'scanned': losses(small_program((1, 8, 1), scan=True, remat='attention')),
  'alone, no dropout': losses(small_program((1, 1, 1), one, dropout=0.0)),
  'accumulated': losses(small_program((2, 2, 1), jax.devices()[:4], dropout=0.0, accumulate=2)),
}
print(json.dumps(found))
"""


def test_meshes_rematerialisation_and_accumulation_change_no_loss():
  found = json.loads(run_on_devices(ON_EIGHT, 8))
  assert len(set(found['alone'])) == 10 and found['alone'] != found['alone, no dropout']
  for name, values in found.items():
    expected = found['alone, no dropout' if name == 'accumulated' else 'alone']
    if name != 'alone, no dropout':
      np.testing.assert_allclose(values, expected, atol=1e-5, err_msg=name)
