"""Every implementation of the one attention op against the definition, spelt out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.ops.attention import IMPLEMENTATIONS, attention, relative_terms

GRID, HEADS, HEAD_WIDTH = (3, 5), 2, 4  # not square: rows and columns must not be mixed up


def inputs(prefix):
  rng = np.random.default_rng(prefix)
  length = prefix + GRID[0] * GRID[1]
  q, k, v, probe = rng.normal(size=(4, 2, HEADS, length, HEAD_WIDTH))
  tables = [rng.normal(size=(2 * size - 1, HEAD_WIDTH)) for size in GRID]
  return [x.astype(np.float32) for x in (q, k, v, *tables)], probe.astype(np.float32)


def run(implementation, prefix):
  def call(q, k, v, table_h, table_w):
    rel_h, rel_w = relative_terms(q, table_h, table_w, GRID, prefix)
    return attention(q, k, v, rel_h, rel_w, grid=GRID, prefix=prefix, implementation=implementation)
  return call


def by_definition(q, k, v, table_h, table_w, prefix):
  """Query by query, key by key."""
  q, k, v, table_h, table_w = (np.asarray(x, np.float64) for x in (q, k, v, table_h, table_w))
  out = np.zeros_like(q)
  for b, head, i in np.ndindex(q.shape[:3]):
    query = q[b, head, i]
    logits = k[b, head] @ query / np.sqrt(HEAD_WIDTH)
    for j in range(prefix, len(logits)):
      if i >= prefix:
        (row, column), (key_row, key_column) = divmod(i - prefix, GRID[1]), divmod(j - prefix, GRID[1])
        logits[j] += query @ table_h[row - key_row + GRID[0] - 1] + query @ table_w[column - key_column + GRID[1] - 1]
    weights = np.exp(logits - logits.max())
    out[b, head, i] = weights / weights.sum() @ v[b, head]
  return out


@pytest.mark.parametrize('prefix', [0, 5])
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_forward_is_the_definition(implementation, prefix):
  arrays, _ = inputs(prefix)
  out = jax.jit(run(implementation, prefix))(*arrays)
  np.testing.assert_allclose(out, by_definition(*arrays, prefix), atol=2e-6)


@pytest.mark.parametrize('prefix', [0, 5])
@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_gradients_are_slopes_of_the_definition(implementation, prefix):
  """Of the queries, keys, values and both tables, along random directions, by central differences in float64."""
  arrays, probe = inputs(prefix)
  function = run(implementation, prefix)
  gradients = jax.jit(jax.grad(lambda args: (function(*args) * probe).sum()))(arrays)
  rng, step = np.random.default_rng(1), 1e-5
  for index, gradient in enumerate(gradients):
    direction = rng.normal(size=gradient.shape)
    shifted = [[np.asarray(x, np.float64) + (sign * step * direction if i == index else 0)
                for i, x in enumerate(arrays)] for sign in (1, -1)]
    high, low = ((by_definition(*args, prefix) * probe).sum() for args in shifted)
    np.testing.assert_allclose((np.asarray(gradient, np.float64) * direction).sum(), (high - low) / (2 * step),
                               rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize('prefix', [0, 5])
def test_implementations_have_the_same_gradients(prefix):
  arrays, probe = inputs(prefix)
  reference, *others = (jax.jit(jax.grad(lambda args, f=run(name, prefix): (f(*args) * probe).sum()))(arrays)
                        for name in ('reference', *(set(IMPLEMENTATIONS) - {'reference'})))
  for gradients in others:
    for ours, theirs in zip(gradients, reference):
      np.testing.assert_allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_without_relative_positions_it_is_plain_attention(implementation):
  (q, k, v, *_), _ = inputs(0)
  out = attention(q, k, v, grid=GRID, implementation=implementation)
  plain = jax.nn.dot_product_attention(*(jnp.swapaxes(x, 1, 2) for x in (q, k, v)))
  np.testing.assert_allclose(out, jnp.swapaxes(plain, 1, 2), atol=2e-6)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_large_logits_stay_finite(implementation):
  arrays, _ = inputs(5)
  out = run(implementation, 5)(*(100 * x for x in arrays[:2]), *arrays[2:])
  assert np.isfinite(out).all()


def test_an_unknown_implementation_is_named_with_the_known_ones():
  arrays, _ = inputs(0)
  with pytest.raises(ValueError, match="'fast' is unknown.*reference"):
    run('fast', 0)(*arrays)
