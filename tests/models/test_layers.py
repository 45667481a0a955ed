"""Shared layers: random keys, LayerNorm, GELU, and compute types."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models import layers, weights
from ditsam_jax.models.ditsam import DitSam
from tests.small_models import random_batch, small_config


def test_quick_draws_gives_the_same_keys():
  expected, given = nnx.Rngs(params=3, dropout=4), nnx.Rngs(params=3, dropout=4)
  first = [expected.params(), given.params()]
  keys = [expected.params(), expected.dropout(), expected.params(), expected.dropout.fork()(), expected.params()]
  with layers.quick_draws(given) as quick:
    quick_keys = [quick.params(), quick.dropout(), quick.params(), quick.dropout.fork()(), quick.params()]
  for key, quick_key in zip(first[:1] + keys, first[1:] + quick_keys):
    assert jnp.array_equal(jax.random.key_data(key), jax.random.key_data(quick_key))
  assert jnp.array_equal(jax.random.key_data(expected.params()), jax.random.key_data(given.params()))  # the next key


@pytest.mark.verifies('LayerNorm in bfloat16', against='float64 NumPy', within='2⁻⁸')
def test_layer_norm_of_bf16_computes_statistics_in_f32():
  x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 256)), jnp.bfloat16)
  wide = np.asarray(x, np.float64)
  expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
  normed = layers.LayerNorm(256, 1e-6)(x)
  assert normed.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=2**-8, atol=2**-8)


@pytest.mark.verifies("LayerNorm's gradients", against='differences in float64 NumPy', within='3e-6 relative')
def test_the_custom_gradients_of_layer_norm():
  """Against finite differences in float64, for x with a non-zero mean and two axes of rows."""
  rng = np.random.default_rng(1)
  x, probe = rng.normal(3, 2, (2, 3, 5)), rng.normal(size=(2, 3, 5))
  scale, bias = rng.normal(size=(2, 5))

  def value(x, scale, bias):
    centred = x - x.mean(-1, keepdims=True)
    return (probe * (centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1) * scale + bias)).sum()

  def loss(x, scale, bias):
    norm = layers.LayerNorm(5, 0.1)
    norm.scale[...], norm.bias[...] = scale, bias
    return (probe * norm(x)).sum()

  given = [np.asarray(array, np.float32) for array in (x, scale, bias)]
  for i, gradient in enumerate(jax.grad(loss, argnums=(0, 1, 2))(*given)):
    slopes = np.zeros_like(given[i], np.float64)
    for place in np.ndindex(slopes.shape):
      ends = []
      for step in (1e-5, -1e-5):
        moved = [np.array(array, np.float64) for array in (x, scale, bias)]
        moved[i][place] += step
        ends.append(value(*moved))
      slopes[place] = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(gradient, slopes, atol=3e-6 * np.abs(slopes).max())


@pytest.mark.verifies('GELU', against="Python's math.erf", within='1e-6')
def test_gelu_is_exact_and_keeps_the_type():
  x = jnp.linspace(-4, 4, 101)
  expected = [0.5 * v * (1 + math.erf(v / 2**0.5)) for v in np.asarray(x, np.float64)]
  np.testing.assert_allclose(layers.gelu(x), expected, atol=1e-6)
  assert layers.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_model_with_bf16_weights_computes_in_bf16():
  """A single f32 value (a NumPy scalar, an embedding) would promote everything after it to f32."""
  batch = random_batch(2)

  def forward():
    model = DitSam(small_config(), rngs=nnx.Rngs(0))
    weights.cast(model, jnp.bfloat16)
    return model(batch['image'], batch['token_ids'], batch['token_mask'])

  out = jax.eval_shape(forward)
  assert out.text_features.dtype == out.image_embedding.dtype == jnp.bfloat16
  assert out.logits.dtype == out.iou.dtype == jnp.float32
