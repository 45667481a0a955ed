"""The two protocols for masks at the image's own size."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.protocols import release_mask, standard_mask
from ditsam_jax.geometry.letterbox import Letterbox, fills_square, logit


def test_release_masks_grow_by_a_pixel_and_standard_masks_do_not():
  logits = np.full((4, 4), -1.0, np.float32)
  logits[1, 1] = 1.0
  whole = Letterbox(0, 0, 4, 4)
  # At twice the size, its weight along an axis is 1/4 at 1 and 4, and 3/4 at 2 and 3.
  grown, kept = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
  grown[1:5, 1:5], kept[2:4, 2:4] = True, True
  np.testing.assert_array_equal(release_mask(logits, whole, (8, 8), 0.5), grown)
  np.testing.assert_array_equal(standard_mask(logits, whole, (8, 8), 0.5), kept)


@pytest.mark.parametrize('mask_of', [release_mask, standard_mask])
def test_padding_does_not_count(mask_of):
  logits = np.full((8, 8), 5.0, np.float32)
  logits[2:6] = -5.0
  assert not mask_of(logits, Letterbox(2, 0, 4, 8), (40, 80), 0.35).any()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 24), st.floats(0.05, 0.95), st.integers(0, 2**32 - 1))
def test_without_resizing_both_threshold_the_sigmoid(side, threshold, seed):
  logits = np.random.default_rng(seed).normal(0, 3, (side, side)).astype(np.float32)
  box = Letterbox(0, 0, side, side)
  expected = 1 / (1 + np.exp(-logits.astype(np.float64))) > threshold
  assert fills_square(box, (side, side), side)
  np.testing.assert_array_equal(release_mask(logits, box, (side, side), threshold), expected)
  np.testing.assert_array_equal(standard_mask(logits, box, (side, side), threshold), expected)


@pytest.mark.parametrize('box, size', [((0, 0, 8, 6), (8, 6)), ((0, 1, 8, 6), (16, 12)), ((0, 0, 8, 8), (16, 16))])
def test_scaled_or_padded_images_do_not_fill_the_square(box, size):
  assert not fills_square(Letterbox(*box), size, 8)


@pytest.mark.parametrize('threshold', [0, 1, -0.1, 35, float('nan')])
def test_thresholds_outside_0_to_1_are_refused(threshold):
  with pytest.raises(UserError, match='0.35'):
    logit(threshold)
