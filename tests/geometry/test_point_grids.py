"""Point grids, crops, small regions and run lengths equal Meta's exactly."""

import importlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditsam_jax.geometry.masks import decode_rle, encode_rle, uncompressed_rle, without_small_regions
from ditsam_jax.geometry.point_grids import crop_boxes, point_grid, point_grids
from tests.meta_sam import meta_package


@pytest.fixture(scope='module')
def amg():
  with meta_package() as package:
    yield importlib.import_module(f'{package.__name__}.utils.amg')


def test_grid_points_are_the_centres_of_the_cells():
  np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])


@pytest.mark.verifies('Point grids, crops and small regions', against="Meta's amg.py", within='equal')
@pytest.mark.parametrize('per_side, layers, downscale', [(32, 0, 1), (32, 2, 2), (7, 1, 3), (5, 2, 1)])
def test_grids_of_all_layers(amg, per_side, layers, downscale):
  for ours, theirs in zip(
    point_grids(per_side, layers, downscale), amg.build_all_layer_point_grids(per_side, layers, downscale), strict=True
  ):
    np.testing.assert_array_equal(ours, theirs)


@settings(deadline=None)
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(0, 3), st.sampled_from([0.0, 0.1, 512 / 1500, 0.9]))
def test_crops_cover_the_image(height, width, layers, overlap):
  boxes = crop_boxes((height, width), layers, overlap)
  assert len(boxes) == sum(4**layer for layer in range(layers + 1))
  assert boxes[0] == ((0, 0, width, height), 0)
  for layer in range(1, layers + 1):
    mine = np.array([box for box, of in boxes if of == layer])
    assert mine[:, 0].min() == mine[:, 1].min() == 0
    assert mine[:, 2].max() == width and mine[:, 3].max() == height


@pytest.mark.verifies('Point grids, crops and small regions', against="Meta's amg.py", within='equal')
def test_crops_of_many_sizes(amg):
  rng = np.random.default_rng(0)
  for _ in range(300):
    size, layers, overlap = tuple(rng.integers(8, 2000, 2).tolist()), int(rng.integers(0, 4)), float(rng.uniform(0, 1))
    boxes, of = amg.generate_crop_boxes(size, layers, overlap)
    assert crop_boxes(size, layers, overlap) == [(tuple(box), layer) for box, layer in zip(boxes, of)]


@pytest.mark.verifies('Point grids, crops and small regions', against="Meta's amg.py", within='equal')
def test_small_regions(amg):
  rng = np.random.default_rng(0)
  changes = 0
  for number in range(200):
    mask = rng.random((12, 15)) < (0.02, 0.3, 0.5, 0.8)[number % 4]
    area = int(rng.integers(1, 25))
    expected, filled = amg.remove_small_regions(mask, area, 'holes')
    expected, cleared = amg.remove_small_regions(expected, area, 'islands')
    ours, changed = without_small_regions(mask, area)
    np.testing.assert_array_equal(ours, expected)
    assert changed == (filled or cleared)
    changes += changed
  assert 50 < changes < 200


@given(st.integers(1, 9), st.integers(1, 9), st.randoms(use_true_random=False))
def test_uncompressed_run_lengths_round_trip(height, width, chance):
  mask = np.array([[chance.random() < 0.5 for _ in range(width)] for _ in range(height)])
  np.testing.assert_array_equal(decode_rle(uncompressed_rle(encode_rle(mask))), mask)


@pytest.mark.verifies('Uncompressed run lengths', against="Meta's amg.py", within='equal')
def test_uncompressed_run_lengths(amg):
  import torch

  rng = np.random.default_rng(0)
  masks = rng.random((20, 9, 7)) < np.linspace(0, 1, 20)[:, None, None]
  assert [uncompressed_rle(encode_rle(mask)) for mask in masks] == amg.mask_to_rle_pytorch(torch.as_tensor(masks))
