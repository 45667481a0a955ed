"""All meshes train to the same losses, state is sharded by the rules, and sizes that do not divide are refused."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from ml_collections import ConfigDict

from ditsam_jax.config import lengths, recipe
from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models
from ditsam_jax.parallel import sharding
from ditsam_jax.parallel.activations import AXES
from ditsam_jax.parallel.weights import spec_at_rest
from ditsam_jax.storage import saved_model
from ditsam_jax.training.program import build
from tests.devices import run_on_devices
from tests.small_models import random_batch, random_model, small_config


def small_program(mesh, devices=None, dropout=0.1, fusion='layer_wise', **changes):
  """The small model's program on a mesh."""
  config = recipe('refcoco')
  config.update({'scan': False, **changes})
  config.data.batch_size = 8
  config.optimizer.update(learning_rate=1e-3, warmup_start=1e-3, warmup_steps=0)
  config.mesh.update(dict(zip(AXES, mesh)))
  text = dataclasses.replace(small_config().text_encoder, dropout=dropout)
  model = small_config(fusion=fusion, fusion_dropout=dropout, text_encoder=text)
  return build(lengths.resolve(config, lambda: 42404), model, sharding.make_mesh(config.mesh, devices))


def losses(start, program, steps=10):
  """The losses of a few steps from a saved model, each on a new batch."""
  state, _ = program.initial_state(start)
  found = []
  for step in range(steps):
    state, metrics = program.step(state, program.assemble(random_batch(8, seed=step)))
    found.append(float(metrics['loss']))
  return found


def gathered_or_summed(program):
  """The shapes of the results of all-gathers and all-reduces in a program's text."""
  results = re.findall(r'= (.*?) all-(?:gather|reduce)(?:-start)?\(', program)
  return sorted({shape for result in results for shape in re.findall(r'\w+\[[\d,]+\]', result)})


def test_the_package_is_the_lowest_layer():
  """Models and ops import it, so it imports neither, nor what does."""
  imported = set()
  for file in Path(sharding.__file__).parent.glob('*.py'):
    imported |= set(re.findall(r'^ *(?:from|import) ditsam_jax\.(\w+)', file.read_text(), re.MULTILINE))
  assert imported <= {'errors', 'fields', 'parallel', 'terminal'}


ON_EIGHT = """
import json, sys
import jax
from tests.parallel.test_sharding import gathered_or_summed, losses, small_program
start = %r
one, four = jax.devices()[:1], jax.devices()[:4]
sharded = small_program((1, 8, 1), scan=True, remat='elementwise')
print(json.dumps({
  'moved': gathered_or_summed(sharded.lower().compile().as_text()),
  'alone': losses(start, small_program((1, 1, 1), one)),
  'data': losses(start, small_program((8, 1, 1))),
  'fsdp': losses(start, sharded),
  'all': losses(start, small_program((2, 2, 2))),
  'alone, no dropout': losses(start, small_program((1, 1, 1), one, dropout=0.0)),
  'accumulated': losses(start, small_program((2, 2, 1), four, dropout=0.0, accumulate=2, remat='block')),
}))
"""


@pytest.mark.multiprocess
def test_meshes_rematerialisation_scan_and_accumulation_do_not_change_losses(tmp_path):
  start = saved_model.save(tmp_path / 'start', random_model(small_config()))
  found = json.loads(run_on_devices(ON_EIGHT % str(start), 8))
  assert len(set(found['alone'])) == 10 and found['alone'] != found['alone, no dropout']
  for name in ('data', 'fsdp', 'all'):
    np.testing.assert_allclose(found[name], found['alone'], atol=1e-5, err_msg=name)
  # The text encoder's kernels (24 x 16) are gathered; its vocabulary of 20 words, 24 channels each, is not moved.
  assert 'f32[24,16]' in found['moved'] and 'f32[20,24]' not in found['moved'], found['moved']
  np.testing.assert_allclose(found['accumulated'], found['alone, no dropout'], atol=1e-5)


def abstract_mesh(*sizes):
  return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize(
  'name, shape, spec',
  [
    ('image_encoder.blocks.3.attn.qkv.kernel', (1280, 3840), ('fsdp', 'tensor')),
    ('image_encoder.blocks.3.mlp.lin2.kernel', (5120, 1280), ('tensor', 'fsdp')),
    ('image_encoder.neck.conv2.kernel', (3, 3, 256, 256), (None, None, 'fsdp')),
    ('text_encoder.embeddings.word_embeddings.embedding', (30522, 768), (None, 'fsdp')),
    ('text_encoder.embeddings.token_type_embeddings.embedding', (2, 769), (None, None)),  # 769 is not divisible
    ('image_encoder.blocks.0.norm1.scale', (1280,), ()),
  ],
)
def test_weights_are_sharded_by_the_rules(name, shape, spec):
  assert spec_at_rest(name, shape, dict(data=2, fsdp=4, tensor=2)) == PartitionSpec(*spec)


@pytest.mark.slow
def test_moments_and_average_are_sharded_like_their_parameter_and_nothing_large_is_replicated():
  devices = np.array([jax.devices()[0]] * 8)  # nothing is computed on this mesh
  mesh = jax.sharding.Mesh(devices.reshape(1, 4, 2), AXES, axis_types=(AxisType.Auto,) * 3)
  program = build(lengths.resolve(recipe('refcoco'), lambda: 42404), models.vit_h(), mesh)
  leaves = jax.tree_util.tree_leaves_with_path(program.state)
  kernels = [leaf.sharding.spec for path, leaf in leaves if 'blocks.7.attn.qkv.kernel' in str(path)]
  assert kernels == [PartitionSpec('fsdp', 'tensor')] * 4  # parameter, average, two moments
  replicated = sum(leaf.size for _, leaf in leaves if leaf.sharding.is_fully_replicated)
  assert replicated < 0.01 * sum(leaf.size for _, leaf in leaves)


@pytest.mark.parametrize(
  'sizes, devices, expected',
  [
    ((-1, 1, 1), 8, (8, 1, 1)),
    ((2, -1, 2), 8, (2, 2, 2)),
    ((1, 1, 8), 8, (1, 1, 8)),
    ((3, -1, 1), 8, 'needs 3 devices, but there are 8'),
    ((2, 2, 1), 8, 'needs 4 devices, but there are 8'),
    ((-1, -1, 1), 8, (1, 8, 1)),
    ((-1, -1, 2), 64, (2, 16, 2)),
    ((-1, -1, 1), 24, (2, 12, 1)),
    ((-1, 1, -1), 8, 'for one, or for data and fsdp'),
    ((0, -1, 1), 8, 'whole numbers from 1'),
  ],
)
def test_sizes_of_the_mesh(sizes, devices, expected):
  config = ConfigDict(dict(zip(AXES, sizes)))
  devices = np.array(jax.devices() * devices)
  if isinstance(expected, tuple):
    assert tuple(sharding.make_mesh(config, devices).shape.values()) == expected
  else:
    with pytest.raises(UserError, match=expected):
      sharding.make_mesh(config, devices)


def test_indivisible_sizes_are_refused_with_suggestions():
  with pytest.raises(UserError, match='batch_size is 20; expected a multiple of 8 .*such as 16 or 24'):
    sharding.check_divides(abstract_mesh(2, 4, 1), models.vit_b().heads, 20)
  with pytest.raises(UserError, match='batch_size is 8; expected a multiple of 16 .*accumulate 2.*such as 16'):
    sharding.check_divides(abstract_mesh(2, 4, 1), models.vit_b().heads, 8, accumulate=2)
  with pytest.raises(UserError, match='batch_size is 16; expected a multiple of 32 .*fsdp 8 x 4, for the shares'):
    sharding.check_divides(abstract_mesh(1, 8, 1), models.vit_b().heads, 16, group=4)
  with pytest.raises(
    UserError, match='mesh.tensor is 8, and the numbers of heads are 16 .*12 .*expected one of 1, 2, 4'
  ):
    sharding.check_divides(abstract_mesh(1, 1, 8), models.vit_h().heads, 64)
