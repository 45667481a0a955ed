"""Every implementation against the definition in float64."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditsam_jax.ops.attention import IMPLEMENTATIONS, attention, relative_terms
from tests.ops.attention_cases import NAMES, Case, exactly, value_and_gradients

SMALL = Case((3, 5), prefix=5, width=4, batch=2)  # not square, to detect swapped rows and columns
TYPES = {
  'reference': ('float32', 'bfloat16'),
  'xla': ('float32', 'bfloat16'),
  'pallas_tpu': ('float32', 'bfloat16'),
  'pallas_gpu': ('float32', 'bfloat16', 'float16'),
  'cudnn': ('bfloat16', 'float16'),
}
TOLERANCE = {'float32': 1e-5, 'float16': 5e-3, 'bfloat16': 3e-2}  # relative to an array's largest value


def check(name: str, dtype: str, case: Case, size: float = 1.0):
  """Compares an implementation's output and gradients with float64 on the same inputs."""
  inputs = case.arrays(dtype, size)
  names = 'out', 'dq', 'dk', 'dv', 'dtable_h', 'dtable_w'
  for what, ours, exact in zip(names, value_and_gradients(name, case, *inputs), exactly(case, *inputs)):
    error = np.abs(ours - exact).max() / max(np.abs(exact).max(), 0.1)
    assert error <= TOLERANCE[dtype], f'{what}: {error}'


def by_definition(q, k, v, table_h, table_w, grid, prefix):
  """Loops over queries and keys."""
  out = np.zeros_like(q)
  for b, head, i in np.ndindex(q.shape[:3]):
    query = q[b, head, i]
    logits = k[b, head] @ query / np.sqrt(q.shape[-1])
    for j in range(prefix, len(logits)):
      if i >= prefix:
        (row, column), (key_row, key_column) = divmod(i - prefix, grid[1]), divmod(j - prefix, grid[1])
        logits[j] += query @ table_h[row - key_row + grid[0] - 1] + query @ table_w[column - key_column + grid[1] - 1]
    weights = np.exp(logits - logits.max())
    out[b, head, i] = weights / weights.sum() @ v[b, head]
  return out


@pytest.mark.verifies(
  'The definition of attention with relative positions and a text prefix, and its gradients',
  against='loops over queries and keys, and differences, in float64 NumPy',
  within='1e-12; gradients 1e-6',
)
@pytest.mark.parametrize('case', [SMALL, SMALL._replace(prefix=0)], ids=str)
def test_the_float64_reference_matches_the_definition_and_its_gradients(case):
  """Gradients along random directions, by central differences."""
  arrays, probe = case.arrays('float64')
  out, *gradients = exactly(case, arrays, probe)
  define = functools.partial(by_definition, grid=case.grid, prefix=case.prefix)
  np.testing.assert_allclose(out, define(*arrays), atol=1e-12)
  rng, step = np.random.default_rng(1), 1e-5
  for index, gradient in enumerate(gradients):
    direction = rng.normal(size=gradient.shape)
    high, low = (
      (define(*[x + (sign * step * direction if i == index else 0) for i, x in enumerate(arrays)]) * probe).sum()
      for sign in (1, -1)
    )
    np.testing.assert_allclose((gradient * direction).sum(), (high - low) / (2 * step), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.verifies(
  'Every implementation of attention: outputs and gradients',
  against='the definition in float64',
  within='1e-5 relative in f32, 5e-3 in f16, 3e-2 in bf16',
)
@pytest.mark.parametrize(
  'index, case',
  list(
    enumerate(
      [
        Case((4, 4), width=64),
        Case((14, 14), prefix=20, width=80),
        Case((14, 14), width=32),
        Case((8, 3), prefix=64, width=16, batch=2),
      ]
    )
  ),
  ids=str,
)
@pytest.mark.parametrize('name', NAMES)
def test_shapes_of_real_models(name, index, case):
  """Each case uses one of the implementation's types."""
  check(name, TYPES[name][index % len(TYPES[name])], case)


@pytest.mark.slow
@pytest.mark.verifies(
  'Every implementation of attention: outputs and gradients',
  against='the definition in float64',
  within='1e-5 relative in f32, 5e-3 in f16, 3e-2 in bf16',
)
@pytest.mark.parametrize(
  'name, case',
  [
    ('xla', Case((26, 33), prefix=3, heads=2)),  # two heads at a time, queries in two chunks
    ('xla', Case((23, 21), prefix=2, heads=3, batch=3)),  # three of nine heads at a time
    ('pallas_gpu', Case((9, 14), prefix=5, batch=2)),  # three blocks along each axis
    ('pallas_gpu', Case((124, 4), prefix=20, width=80, heads=1)),  # the channels of ViT-H at 1024: 80 and 128
    ('pallas_tpu', Case((27, 31), prefix=5, heads=1)),  # two blocks along each axis, the second one partial
    ('pallas_tpu', Case((32, 31), prefix=32, heads=1)),  # two full blocks
    ('pallas_tpu', Case((4, 5), prefix=3, heads=1, width=128)),  # extra channels in a product of their own
  ],
  ids=str,
)
def test_long_sequences_in_chunks(name, case):
  check(name, 'float32', case)


@pytest.mark.slow
@pytest.mark.verifies(
  'Every implementation of attention: outputs and gradients',
  against='the definition in float64',
  within='1e-5 relative in f32, 5e-3 in f16, 3e-2 in bf16',
)
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
  case=st.builds(
    Case,
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    prefix=st.integers(0, 9),
    width=st.sampled_from((3, 8, 20)),
    batch=st.integers(1, 2),
    heads=st.integers(1, 3),
  ),
  data=st.data(),
)
@pytest.mark.parametrize('name', NAMES)
def test_any_small_shape(name, case, data):
  check(name, data.draw(st.sampled_from(TYPES[name])), case)


@pytest.mark.slow
@pytest.mark.parametrize('name', NAMES)
def test_large_logits_do_not_overflow(name):
  """They reach thousands, so all weight falls on one key."""
  case, dtype = SMALL._replace(width=64), TYPES[name][0]
  arrays, probe = case.arrays(dtype, size=200.0)
  out, *gradients = value_and_gradients(name, case, arrays, probe)
  assert all(np.isfinite(x).all() for x in gradients)
  exact, *_ = exactly(case, arrays, probe)
  assert np.abs(out - exact).max() <= 10 * TOLERANCE[dtype]


def call(implementation='auto', **changes):
  (q, k, v, *tables), _ = SMALL.arrays()
  terms = dict(zip(('rel_h', 'rel_w'), relative_terms(q, *tables, SMALL.grid, SMALL.prefix)))
  arguments = dict(q=q, k=k, v=v, grid=SMALL.grid, prefix=SMALL.prefix) | terms | changes
  return attention(**arguments, implementation=implementation)


def test_on_cpu_auto_is_xla():
  np.testing.assert_array_equal(call('auto'), call('xla'))


@pytest.mark.parametrize(
  'changes, message',
  [
    (dict(grid=(5, 5)), r'q is \(2, 2, 20, 4\); expected \(2, 2, 30, 4\) for a 5 x 5 grid and a prefix of 5'),
    (dict(grid=(5, 3)), r'rel_h is \(2, 2, 15, 3\); expected \(2, 2, 15, 5\)'),
  ],
)
def test_mismatched_shapes_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    call(**changes)


def test_an_unknown_implementation_lists_the_known_ones():
  with pytest.raises(ValueError, match=f"'fast': there is no such .*{', '.join(IMPLEMENTATIONS)}"):
    call('fast')


def test_an_unsupported_implementation_explains_why():
  with pytest.raises(ValueError, match="'cudnn': it supports bfloat16 and float16, not float32"):
    call('cudnn')
