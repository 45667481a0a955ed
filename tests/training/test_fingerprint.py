"""The fingerprint of weights follows its definition, and detects every change."""

import hashlib

import jax.numpy as jnp
import numpy as np

from ditsam_jax.training.fingerprint import weights_sha256


def test_the_fingerprint_is_the_sha256_of_names_types_shapes_and_bytes():
  weight, bias = np.arange(6, dtype=np.float32).reshape(2, 3), np.float32([1.5])
  expected = hashlib.sha256(b'ema/a float32 [2, 3]\n' + weight.tobytes() + b'params/a.b float32 [1]\n' + bias.tobytes())
  assert weights_sha256(params={'a.b': jnp.asarray(bias)}, ema={'a': jnp.asarray(weight)}) == expected.hexdigest()


def test_every_change_is_detected_and_insertion_order_ignored():
  a, b = jnp.arange(4.0), jnp.ones(2)
  prints = [
    weights_sha256(params=params)
    for params in (
      {'a': a, 'b': b},
      {'a': a, 'c': b},
      {'a': a.reshape(2, 2), 'b': b},
      {'a': a.astype(jnp.float16), 'b': b},
      {'a': jnp.nextafter(a, 9.0), 'b': b},
      {'a': a},
      {'a': -a, 'b': b},
      {'a': a.at[0].set(-0.0), 'b': b},
    )
  ]
  assert len(set(prints)) == len(prints)
  assert weights_sha256(params={'b': b, 'a': a}) == prints[0]
