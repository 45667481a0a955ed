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


@pytest.mark.verifies("GELU's gradient", against='its definition in float64', within='1e-6')
def test_the_custom_gradient_of_gelu():
  x = np.linspace(-6, 6, 101)
  slopes = [0.5 * (1 + math.erf(v / 2**0.5)) + v * math.exp(-v * v / 2) / (2 * math.pi) ** 0.5 for v in x]
  found = jax.grad(lambda x: layers.gelu(x).sum())(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(found, slopes, atol=1e-6)


@pytest.mark.parametrize('function', [layers.gelu, layers.LayerNorm(64, 1e-6)], ids=['gelu', 'norm'])
def test_backward_passes_keep_bf16_inputs_as_they_are(function):
  """And little else; JAX's own derivatives keep them several times, in f32."""
  x = jax.ShapeDtypeStruct((100, 64), jnp.bfloat16)
  kept = jax.eval_shape(lambda x: jax.vjp(function, x)[1], x)
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept)]
  assert sum(sizes) <= 2 * 100 * 64 + 2 * 4 * 100 + 2 * 4 * 64  # x, two statistics of each row, scale and bias


@pytest.mark.verifies('products by head for TPUs', against='float64 NumPy', within='1e-6 relative; bfloat16 2⁻⁷')
@pytest.mark.parametrize('dtype, tolerance', [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_products_by_head_and_their_gradients(dtype, tolerance):
  rng = np.random.default_rng(0)
  x, kernel, bias, probe = (
    np.asarray(jnp.asarray(rng.normal(size=size), dtype), np.float64)
    for size in ((2, 5, 12), (12, 3, 2, 4), (3, 2, 4), (3, 2, 2, 4, 5))
  )
  found, back = jax.vjp(layers.to_heads, *(jnp.asarray(a, dtype) for a in (x, kernel, bias)))
  out = np.einsum('bnc,cshd->sbhdn', x, kernel) + bias[:, None, :, :, None]
  gradients = (
    np.einsum('sbhdn,cshd->bnc', probe, kernel),
    np.einsum('sbhdn,bnc->cshd', probe, x),
    probe.sum((1, 4)),
  )
  for ours, exact in zip((*found, *back(tuple(jnp.asarray(probe, dtype)))), (*out, *gradients)):
    assert ours.dtype == dtype
    np.testing.assert_allclose(np.asarray(ours, np.float64), exact, atol=tolerance * np.abs(exact).max())


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
