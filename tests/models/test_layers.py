"""What the layers share."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.models import layers


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
