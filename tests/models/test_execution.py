"""How blocks run changes what is kept, not what is computed."""

import contextlib
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.config import ImageEncoderConfig
from ditsam_jax.models.execution import REMAT, Execution
from ditsam_jax.models.image_encoder import Block
from ditsam_jax.ops.attention import xla
from tests.small_models import random_model, small_config

TOKENS, WIDTH, GRID = 22, 32, (4, 4)  # with 6 text slots
PROBE = np.random.default_rng(1).normal(size=(3, TOKENS, WIDTH)).astype(np.float32)


def block(dtype=jnp.float32):
  """A block with random weights of a type, and tokens."""
  config = ImageEncoderConfig(width=WIDTH, depth=1, heads=2, global_blocks=(0,), pretrain_grid=4, pretrain_window=2)
  made = Block(config, 0, rngs=nnx.Rngs(0))
  graph, weights = nnx.split(made)
  rng = np.random.default_rng(0)
  weights = jax.tree.map(lambda array: jnp.asarray(rng.normal(0, 0.2, array.shape), dtype), weights)
  return graph, weights, jnp.asarray(rng.normal(size=(3, TOKENS, WIDTH)), dtype)


def loss_of(graph, execution):
  def loss(weights, x):
    run = execution.rematerialised(lambda weights, x: nnx.merge(graph, weights)(x, GRID, execution))
    return (run(weights, x).astype(jnp.float32) * PROBE).sum()

  return loss


@pytest.fixture(autouse=True)
def recomputed_logits(monkeypatch):
  monkeypatch.setattr(xla, 'SMALL', 0)  # as in larger models


@pytest.mark.slow
@pytest.mark.parametrize('tiled', [False, True])
@pytest.mark.parametrize('remat', REMAT)
def test_losses_and_gradients_are_the_same(remat, tiled):
  graph, weights, x = block()
  plain = jax.value_and_grad(loss_of(graph, Execution(attention='reference')), argnums=(0, 1))(weights, x)
  execution = Execution(remat, attention='xla', tiled=tiled)
  found = jax.jit(jax.value_and_grad(loss_of(graph, execution), argnums=(0, 1)))(weights, x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max() + 1e-9), found, plain)


def test_blocks_that_cannot_be_scanned_are_recomputed_all_the_same():
  """E-DIT's slots travel from block to block."""
  config = small_config(fusion='e2e', fusion_dropout=0.0)
  graph, weights, others = nnx.split(random_model(config).image_encoder, nnx.Param, ...)
  images, text = (jnp.zeros(shape) for shape in ((2, *[config.image_size] * 2, 3), (2, 5, config.text_encoder.width)))

  def flops(execution):
    def loss(weights):
      return nnx.merge(graph, weights, others)(images, text, execution=execution).sum()

    return jax.jit(jax.grad(loss)).lower(weights).compile().cost_analysis()['flops']

  plain, unrolled, asked = (flops(Execution(*each)) for each in (('none', True), ('block', False), ('block', True)))
  assert asked == unrolled > 1.1 * plain


@pytest.mark.parametrize('tiled', [False, True])
@pytest.mark.parametrize('remat, channels', [('elementwise', 9), ('products', 2), ('block', 0)])
def test_what_a_block_keeps_in_bf16(remat, channels, tiled):
  """In arrays of C channels a token, besides the input; in f32, only statistics and the logsumexp."""
  graph, weights, x = block(jnp.bfloat16)
  text = io.StringIO()
  with contextlib.redirect_stdout(text):
    loss = loss_of(graph, Execution(remat, attention='xla', tiled=tiled))
    jax.ad_checkpoint.print_saved_residuals(loss, weights, x)
  kept = [line for line in text.getvalue().splitlines() if 'from the argument' not in line and 'constant' not in line]
  found = [
    (dtype, np.prod([int(n) for n in dims.split(',') if n]))
    for line in kept
    for dtype, dims in re.findall(r'^(\w+)\[([\d,]*)\]', line)
  ]
  unit = 3 * TOKENS * WIDTH
  assert sum(size for dtype, size in found if dtype == 'bf16') == channels * unit, text.getvalue()
  assert sum(size for dtype, size in found if dtype == 'f32') <= 6 * 3 * TOKENS, text.getvalue()
