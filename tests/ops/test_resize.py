"""Resizing agrees with torch.nn.functional.interpolate (values from tests/golden/make_fixtures.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.ops.resize import resize_grid, resize_masks, resize_matrix, resize_rows
from tests.small_models import golden_arrays

SIZES = [(1, 1), (4, 7), (9, 14), (20, 31)]  # targets of a 9 x 14 plane


@pytest.fixture(scope='module')
def torch_values():
  return golden_arrays('resize')


@pytest.mark.verifies(
  'Resizing: linear, bicubic, and bilinear with aligned corners', against="PyTorch's interpolate", within='2e-6'
)
@pytest.mark.parametrize('size', [1, 7, 27, 63, 127])
def test_rows_linear(torch_values, size):
  rows = torch_values['line'][0].T  # [27, 3]
  np.testing.assert_allclose(resize_rows(rows, size), torch_values[f'linear/{size}'][0].T, atol=1e-6)


@pytest.mark.verifies(
  'Resizing: linear, bicubic, and bilinear with aligned corners', against="PyTorch's interpolate", within='2e-6'
)
@pytest.mark.parametrize('size', SIZES)
def test_grid_bicubic(torch_values, size):
  for plane, expected in zip(torch_values['plane'], torch_values[f'bicubic/{size[0]}x{size[1]}']):
    resized = resize_grid(np.moveaxis(plane, 0, -1), size)
    np.testing.assert_allclose(np.moveaxis(resized, -1, 0), expected, atol=2e-6)


@pytest.mark.verifies(
  'Resizing: linear, bicubic, and bilinear with aligned corners', against="PyTorch's interpolate", within='2e-6'
)
@pytest.mark.parametrize('size', SIZES)
def test_bilinear_with_aligned_corners(torch_values, size):
  expected = torch_values[f'aligned/{size[0]}x{size[1]}']
  np.testing.assert_allclose(resize_masks(torch_values['plane'], size, align_corners=True), expected, atol=2e-6)


@pytest.mark.parametrize('method', ['linear', 'cubic'])
@pytest.mark.parametrize('old, new', [(27, 63), (127, 15), (5, 5)])
def test_constants_are_preserved(method, old, new):
  np.testing.assert_allclose(resize_matrix(old, new, method).sum(1), 1.0, atol=1e-6)


@pytest.mark.verifies('Gradients through resizing', against='worked out by hand', within='1e-6')
def test_gradients_flow_through_resizing():
  """Three rows resized to five, by hand: half-pixel centres at -0.2, 0.4, 1, 1.6, 2.2 of the old axis."""
  gradient = jax.grad(lambda table: (resize_rows(table, 5) * jnp.arange(1.0, 6.0)[:, None]).sum())(jnp.zeros((3, 1)))
  np.testing.assert_allclose(gradient[:, 0], [1 + 2 * 0.6, 2 * 0.4 + 3 + 4 * 0.4, 4 * 0.6 + 5], rtol=1e-6)
