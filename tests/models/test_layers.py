"""What the layers share."""

import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.models import layers, weights
from ditsam_jax.models.ditsam import DitSam
from tests.small_models import random_batch, small_config


def test_quick_draws_are_the_streams_own_keys():
  expected, given = nnx.Rngs(params=3, dropout=4), nnx.Rngs(params=3, dropout=4)
  first = [expected.params(), given.params()]
  keys = [expected.params(), expected.dropout(), expected.params(), expected.dropout.fork()(), expected.params()]
  with layers.quick_draws(given) as quick:
    quick_keys = [quick.params(), quick.dropout(), quick.params(), quick.dropout.fork()(), quick.params()]
  for key, quick_key in zip(first[:1] + keys, first[1:] + quick_keys):
    assert jnp.array_equal(jax.random.key_data(key), jax.random.key_data(quick_key))
  assert jnp.array_equal(jax.random.key_data(expected.params()), jax.random.key_data(given.params()))  # goes on


def test_layer_norm_of_bf16_takes_its_statistics_in_f32():
  x = jnp.asarray(np.random.default_rng(0).normal(100, 1, (4, 256)), jnp.bfloat16)
  wide = np.asarray(x, np.float64)
  expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
  normed = layers.LayerNorm(256, 1e-6)(x)
  assert normed.dtype == jnp.bfloat16
  np.testing.assert_allclose(np.asarray(normed, np.float64), expected, rtol=2 ** -8, atol=2 ** -8)


def test_gelu_is_exact_and_keeps_the_type():
  x = jnp.linspace(-4, 4, 101)
  expected = [0.5 * v * (1 + math.erf(v / 2 ** 0.5)) for v in np.asarray(x, np.float64)]
  np.testing.assert_allclose(layers.gelu(x), expected, atol=1e-6)
  assert layers.gelu(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16


def test_a_model_with_bf16_weights_computes_in_bf16():
  """One wide value (a scalar of NumPy's, an embedding) would make everything after it f32."""
  batch = random_batch(2)

  def forward():
    model = DitSam(small_config(), rngs=nnx.Rngs(0))
    weights.cast(model, jnp.bfloat16)
    return model(batch['image'], batch['token_ids'], batch['token_mask'])
  out = jax.eval_shape(forward)
  assert out.text_features.dtype == out.image_embedding.dtype == jnp.bfloat16
  assert out.logits.dtype == out.iou.dtype == jnp.float32
