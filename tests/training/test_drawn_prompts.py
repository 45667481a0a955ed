"""Prompts drawn on the device: where clicks and boxes fall, and what a click adds to each kind of prompt."""

import jax
import numpy as np
import pytest

from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.errors import UserError
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.training.drawn_prompts import (
  corrective_clicks,
  first_prompts,
  jittered_boxes,
  with_click,
)


def test_corrective_clicks_fall_on_wrong_pixels_each_as_likely_as_the_next():
  mask, target = np.zeros((6, 5), bool), np.zeros((6, 5), bool)
  mask[0, 1] = mask[2, 2] = target[2, 2] = target[5, 4] = target[3, 0] = True  # wrong: (1, 0), (4, 5) and (0, 3)
  count = 3000
  points, labels = jax.jit(corrective_clicks)(jax.random.key(0), np.stack([mask] * count), np.stack([target] * count))
  assert points.shape == (count, 1, 2) and labels.shape == (count, 1)
  found, counts = np.unique(np.hstack([points[:, 0], labels]).astype(int), axis=0, return_counts=True)
  assert found.tolist() == [[0, 3, 1], [1, 0, 0], [4, 5, 1]]  # (x, y, label)
  assert counts.min() > 0.3 * count


def test_where_nothing_is_wrong_a_click_falls_anywhere_and_says_what_is_there():
  target = np.zeros((400, 4, 4), bool)
  target[:, :2] = True
  points, labels = corrective_clicks(jax.random.key(1), target, target)
  y = np.asarray(points)[:, 0, 1]
  np.testing.assert_array_equal(labels[:, 0], (y < 2).astype(int))
  assert len(np.unique(np.asarray(points)[:, 0], axis=0)) == 16


def rectangle(height, width, top, left, bottom, right):
  """A mask with rows top..bottom and columns left..right, both inclusive."""
  mask = np.zeros((height, width), bool)
  mask[top : bottom + 1, left : right + 1] = True
  return mask


def test_boxes_are_the_corners_of_the_mask():
  masks = np.stack([rectangle(8, 10, 2, 3, 4, 9), rectangle(8, 10, 0, 0, 0, 0), np.zeros((8, 10), bool)])
  corners, labels = jittered_boxes(jax.random.key(0), masks, 0.0)
  assert corners[:2].tolist() == [[[3, 2], [9, 4]], [[0, 0], [0, 0]]]
  assert labels.tolist() == [[2, 3], [2, 3], [ABSENT, ABSENT]]


def test_jitter_moves_each_side_by_up_to_its_share_and_stays_in_the_image():
  masks = np.stack([rectangle(40, 40, 10, 0, 19, 39)] * 500)
  corners, _ = jittered_boxes(jax.random.key(0), masks, 0.2)
  corners = np.asarray(corners)
  low, high = corners.min(0), corners.max(0)
  assert (low >= [[0, 8], [31, 17]]).all() and (high <= [[8, 12], [39, 21]]).all()
  np.testing.assert_allclose(low, [[0, 8], [31, 17]], atol=0.2)
  np.testing.assert_allclose(high, [[8, 12], [39, 21]], atol=0.2)


def test_first_prompts_are_drawn_in_proportion():
  masks = np.stack([rectangle(8, 8, 1, 1, 5, 6)] * 2000)
  points, labels = jax.jit(first_prompts, static_argnums=(2, 3))(jax.random.key(0), masks, (2.0, 1.0, 1.0), 0.0)
  kinds = [tuple(pair) for pair in np.asarray(labels).tolist()]
  counts = {kind: kinds.count(kind) for kind in set(kinds)}
  assert set(counts) == {(ABSENT, ABSENT), (1, -1), (2, 3)}
  assert counts[ABSENT, ABSENT] == pytest.approx(1000, abs=100) and counts[2, 3] == pytest.approx(500, abs=90)
  clicks = np.asarray(points)[[kind == (1, -1) for kind in kinds]][:, 0].astype(int)
  assert masks[0][clicks[:, 1], clicks[:, 0]].all()


@pytest.mark.slow
def test_a_target_without_pixels_gets_no_box_and_a_negative_click():
  empty = np.zeros((50, 8, 8), bool)
  assert set(np.ravel(first_prompts(jax.random.key(0), empty, (0.0, 0.0, 1.0), 0.1)[1])) == {ABSENT}
  assert np.unique(first_prompts(jax.random.key(0), empty, (0.0, 1.0, 0.0), 0.1)[1], axis=0).tolist() == [[0, -1]]


def test_a_click_on_a_prompt_without_points_brings_sams_padding():
  labels = np.array([[ABSENT, ABSENT], [1, -1], [2, 3]], np.int32)
  points = np.zeros((3, 2, 2), np.float32)
  click, label = np.full((3, 1, 2), 5.0, np.float32), np.array([[0], [1], [0]], np.int32)
  moved, once = with_click(points, labels, click, label)
  assert once.tolist() == [[ABSENT, -1, 0], [1, -1, 1], [2, 3, 0]]
  assert moved[:, 2].tolist() == [[5, 5]] * 3
  _, twice = with_click(moved, once, click, label)
  assert twice.tolist() == [[ABSENT, -1, 0, 0], [1, -1, 1, 1], [2, 3, 0, 0]]


@pytest.mark.parametrize(
  'shares, message',
  [
    (dict(text=0.9), 'the shares are text 0.9, text_click 0.125'),
    (dict(text=float('nan')), 'the shares are text nan'),
    (dict(text=0.63, click=0.0, box=0.12), 'click and box are 0.12 of all samples; expected a fraction such as 1/4'),
  ],
)
def test_impossible_shares_are_refused(shares, message):
  with pytest.raises(UserError, match=message):
    FirstPromptConfig(**shares)


@pytest.mark.parametrize('click, box, expected', [(0.125, 0.125, (1, 4)), (0, 0, (0, 1)), (0.2, 0.1, (3, 10))])
def test_the_samples_without_a_sentence_are_a_fraction(click, box, expected):
  config = FirstPromptConfig(text=1 - click - box, text_click=0, text_box=0, click=click, box=box)
  assert config.without_text == expected
