"""Letterboxing: position, padding and normalisation, checked by the release's values or plain arithmetic."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditsam_jax.geometry.letterbox import Unplaced, centre, letterbox, normalise, resized_shape

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height=40, width=60):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.verifies('Position of the letterbox', against='the DIT release', within='equal')
def test_the_letterbox_is_positioned_as_in_the_release():
  golden = np.load(Path(__file__).parents[1] / 'golden' / 'metrics.npz')
  infos = [golden[name] for name in golden.files if name.endswith('/info')]
  assert infos
  for height, width, new_height, new_width, left, top in infos:
    _, box = letterbox(np.zeros((height, width, 3), np.uint8), 96, MEAN, STD)
    assert box == (top, left, new_height, new_width)


@pytest.mark.verifies('Normalised images', against='float64 NumPy', within='3e-7')
def test_normalise_matches_its_definition():
  image = picture()
  expected = (image.astype(np.float64) / 255 - MEAN) / STD
  normalised = normalise(image, MEAN, STD)
  assert normalised.dtype == np.float32
  np.testing.assert_allclose(normalised, expected, rtol=0, atol=3e-7)


def test_padding_is_zero_after_normalisation():
  square, box = letterbox(picture(32, 64), 64, MEAN, STD)
  assert square.shape == (64, 64, 3) and box == (16, 0, 32, 64)
  np.testing.assert_array_equal(square[:16], 0)
  np.testing.assert_array_equal(square[48:], 0)
  np.testing.assert_array_equal(square[16:48], normalise(picture(32, 64), MEAN, STD))


@pytest.mark.parametrize('height, width', [(64, 64), (32, 64), (64, 27), (1, 64)])
def test_placing_in_a_batch_equals_normalising_and_centring(height, width):
  squares = np.zeros((3, 64, 64, 3), np.float32)
  Unplaced(picture(height, width), 64, MEAN, STD).place(squares[1])
  expected, _ = centre(normalise(picture(height, width), MEAN, STD), 64)
  np.testing.assert_array_equal(squares, [0 * expected, expected, 0 * expected])


def test_an_odd_margin_has_its_extra_row_at_the_bottom():
  square, box = centre(np.ones((3, 8), np.uint8), 8)
  assert box == (2, 0, 3, 8)
  np.testing.assert_array_equal(square.sum(1), [0, 0, 8, 8, 8, 0, 0, 0])


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from([64, 96, 128, 512]))
def test_any_image_fits_its_square(height, width, size):
  new_height, new_width = resized_shape(height, width, size)
  assert max(new_height, new_width) == size and min(new_height, new_width) >= 1
  assert abs(new_height - height * size / max(height, width)) <= 1
  _, box = centre(np.zeros((new_height, new_width), np.uint8), size)
  assert 0 <= box.top <= size - new_height and 0 <= box.left <= size - new_width


@pytest.mark.parametrize('shape', [(1, 500), (500, 1), (1, 1)])
def test_images_one_pixel_thin_are_letterboxed(shape):
  square, box = letterbox(np.full((*shape, 3), 255, np.uint8), 64, MEAN, STD)
  np.testing.assert_allclose(square[box.window], np.broadcast_to((1 - np.array(MEAN)) / STD, (*box[2:], 3)), rtol=1e-6)
