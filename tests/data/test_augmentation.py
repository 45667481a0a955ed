"""Each augmentation of the training recipe, checked by hand-made cases, the release's values or plain arithmetic."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from ditsam_jax.data import augmentation as augment
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.errors import UserError

ALWAYS = AugmentationConfig(jitter_probability=1, flip_probability=1)
NEVER = AugmentationConfig(scale_steps=1, jitter_probability=0, flip_probability=0)


def picture(height=40, width=60, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def test_random_scale_uses_exactly_the_seven_sizes():
  rng = np.random.default_rng(0)
  image, mask = picture(), np.ones((40, 60), bool)
  sides = []
  for _ in range(300):
    scaled, scaled_mask = augment.random_scale(image, mask, 512, AugmentationConfig(), rng)
    assert scaled.shape[:2] == scaled_mask.shape == (round(scaled.shape[1] * 2 / 3), scaled.shape[1])
    sides.append(scaled.shape[1])
  values, counts = np.unique(sides, return_counts=True)
  np.testing.assert_array_equal(values, 512 - 32 * np.arange(6, -1, -1))
  assert counts.min() > 20


def test_a_scaled_mask_still_covers_its_object():
  image = np.zeros((40, 60, 3), np.uint8)
  image[10:20, 30:50] = 255
  scaled, mask = augment.random_scale(image, image[..., 0] > 0, 120, NEVER, np.random.default_rng(0))
  np.testing.assert_array_equal(mask == 1, scaled[..., 0] > 127)
  assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize('size', [96, 90, 160])
def test_unbiased_masks_stay_where_the_image_is(size):
  """The release's nearest neighbour moves a disc of 128 x 128 pixels by half a pixel at 96."""
  rows, columns = np.mgrid[:128, :128] + 0.5
  moved = {True: [], False: []}
  for y, x in np.random.default_rng(0).uniform(30, 98, (40, 2)):
    disc = (rows - y) ** 2 + (columns - x) ** 2 < 14**2
    for unbiased, shifts in moved.items():
      config = AugmentationConfig(scale_steps=1, unbiased_masks=unbiased)
      _, mask = augment.random_scale(np.zeros((128, 128, 3), np.uint8), disc, size, config, np.random.default_rng(0))
      centre = (np.argwhere(mask).mean(0) + 0.5) * 128 / size
      shifts.append(centre - (y, x))
      assert abs(mask.sum() / disc.sum() * (128 / size) ** 2 - 1) < 0.05
  assert np.abs(np.mean(moved[True], 0)).max() < 0.03
  if size == 96:
    np.testing.assert_allclose(np.mean(moved[False], 0), 0.5, atol=0.05)


@pytest.mark.verifies('Colour jitter', against="Pillow's ImageEnhance", within='equal bits')
def test_jitter_equals_pillows_three_enhancers_bit_for_bit():
  rng, replay = np.random.default_rng(0), np.random.default_rng(0)
  orders, factors = set(), []
  for number in range(200):
    image = any_levels(number)
    replay.random()
    expected, order = Image.fromarray(image), []
    for step in replay.permutation(3):
      order.append(('Brightness', 'Contrast', 'Color')[step])
      factors.append(replay.uniform(0.6, 1.4))
      expected = getattr(ImageEnhance, order[-1])(expected).enhance(factors[-1])
    np.testing.assert_array_equal(augment.color_jitter(image, ALWAYS, rng), np.asarray(expected))
    orders.add(tuple(order))
  assert len(orders) == 6  # every order of the three
  assert 0.6 <= min(factors) < 0.61 and 1.39 < max(factors) <= 1.4


def any_levels(number):
  """A random image with levels over all of 0..255 or at one end, where the enhancers clip."""
  low, high = ((0, 256), (0, 40), (215, 256))[number % 3]
  return np.random.default_rng(number).integers(low, high, (37, 53, 3), np.uint8)


def test_augmentations_occur_with_the_recipes_probabilities():
  rng = np.random.default_rng(0)
  image, mask = picture(6, 6), np.eye(6, dtype=np.uint8)
  jittered = [(augment.color_jitter(image, AugmentationConfig(), rng) != image).any() for _ in range(1000)]
  flipped = [augment.flip(image, mask, 'left', AugmentationConfig(), rng)[2] == 'right' for _ in range(1000)]
  assert abs(np.mean(jittered) - 0.8) < 0.04  # three standard deviations
  assert abs(np.mean(flipped) - 0.5) < 0.05


def test_flip_mirrors_image_mask_and_text_together():
  image, mask = picture(), np.zeros((40, 60), np.uint8)
  mask[3, 7] = 1
  mirrored, mirrored_mask, text = augment.flip(image, mask, 'the man on the left', ALWAYS, np.random.default_rng(0))
  np.testing.assert_array_equal(mirrored[:, 0], image[:, 59])
  assert mirrored_mask[3, 52] == 1 and mirrored_mask.sum() == 1
  assert text == 'the man on the right'


@pytest.mark.parametrize(
  'text, swapped',
  [
    ('left of the right cup', 'right of the left cup'),
    ('second from left, right side', 'second from right, left side'),
    ('the leftmost dog', 'the rightmost dog'),
    ('right-hand man', 'left-hand man'),
    ('Left!', 'right!'),
    ('bright leftover upright', 'bright leftover upright'),
    ('no sides here', 'no sides here'),
  ],
)
def test_sides_are_swapped_in_whole_words_only(text, swapped):
  assert augment.swap_sides(text) == swapped


@given(st.lists(st.sampled_from(['left', 'right', 'leftmost', 'bright', 'a', ',', ' '])))
def test_swapping_twice_changes_nothing(words):
  text = ' '.join(words)
  assert augment.swap_sides(augment.swap_sides(text)) == text


def test_disabled_augmentation_changes_nothing():
  rng = np.random.default_rng(0)
  image, mask = picture(), np.zeros((40, 60), bool)
  scaled, scaled_mask = augment.random_scale(image, mask, 60, NEVER, rng)
  jittered = augment.color_jitter(scaled, NEVER, rng)
  same, same_mask, text = augment.flip(jittered, scaled_mask, 'left', NEVER, rng)
  np.testing.assert_array_equal(same, image)
  np.testing.assert_array_equal(same_mask, mask)
  assert text == 'left'


def test_scales_too_small_for_the_image_are_refused():
  AugmentationConfig().check(224)  # the smallest is 32
  with pytest.raises(UserError, match='7 scales in steps of 32 pixels do not fit images of 128 pixels'):
    AugmentationConfig().check(128)
