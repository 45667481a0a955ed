"""Prompts show the object that they were drawn for, in SAM's own encoding."""

import numpy as np
import pytest

from ditsam_jax.data.prompts import PromptConfig, draw_kind, draw_prompt
from ditsam_jax.errors import UserError

CONFIG = PromptConfig()


def box_mask(top, left, bottom, right, size=64):
  mask = np.zeros((size, size), np.uint8)
  mask[top : bottom + 1, left : right + 1] = 1
  return mask


def test_kinds_are_as_frequent_as_configured():
  rng = np.random.default_rng(0)
  kinds, counts = np.unique([draw_kind(CONFIG, rng) for _ in range(4000)], return_counts=True)
  shares = dict(zip(kinds, counts / 4000))
  for kind in ('point', 'two_points', 'box', 'none'):
    assert shares[kind] == pytest.approx(getattr(CONFIG, kind), abs=0.03)


def test_a_point_is_any_pixel_of_the_mask_equally_often():
  mask = np.zeros((8, 8), np.uint8)
  mask[1, 2] = mask[5, 6] = mask[7, 0] = mask[0, 7] = 1
  rng = np.random.default_rng(0)
  seen = {}
  for _ in range(2000):
    points, labels = draw_prompt('point', mask, CONFIG, rng)
    assert labels.tolist() == [1, -1]
    seen[tuple(points[0])] = seen.get(tuple(points[0]), 0) + 1
  assert set(seen) == {(2, 1), (6, 5), (0, 7), (7, 0)}  # (x, y)
  assert min(seen.values()) > 400


def test_the_second_point_is_inside_or_outside_as_its_label_says():
  mask = box_mask(10, 20, 30, 25)
  rng = np.random.default_rng(0)
  second = []
  for _ in range(500):
    points, labels = draw_prompt('two_points', mask, CONFIG, rng)
    for (x, y), label in zip(points.astype(int), labels):
      assert mask[y, x] == label
    assert labels[0] == 1
    second.append(labels[1])
  assert 0.4 < np.mean(second) < 0.6


def test_a_mask_that_fills_the_square_has_no_negative_point():
  rng = np.random.default_rng(0)
  for _ in range(20):
    assert draw_prompt('two_points', np.ones((4, 4), np.uint8), CONFIG, rng)[1].tolist() == [1, 1]


def test_a_box_without_jitter_touches_the_outermost_pixels():
  points, labels = draw_prompt('box', box_mask(10, 20, 30, 25), PromptConfig(box_jitter=0), np.random.default_rng(0))
  assert labels.tolist() == [2, 3]
  assert points.tolist() == [[20, 10], [25, 30]]


def test_a_box_moves_by_a_tenth_of_its_length_at_most_and_stays_inside():
  rng = np.random.default_rng(0)
  boxes = np.array([draw_prompt('box', box_mask(0, 20, 39, 29), CONFIG, rng)[0] for _ in range(500)])
  assert boxes[:, 0, 1].min() == 0  # the top is the square's own
  np.testing.assert_allclose([boxes[:, 0, 0].min(), boxes[:, 0, 0].max()], [19, 21], atol=0.05)
  np.testing.assert_allclose([boxes[:, 1, 1].min(), boxes[:, 1, 1].max()], [35, 43], atol=0.2)


@pytest.mark.parametrize('kind, mask', [('none', box_mask(1, 1, 2, 2)), ('point', box_mask(9, 9, 8, 8))])
def test_no_prompt_and_an_empty_mask_are_all_padding(kind, mask):
  points, labels = draw_prompt(kind, mask, CONFIG, np.random.default_rng(0))
  assert labels.tolist() == [-1, -1] and not points.any()


@pytest.mark.parametrize('shares', [dict(none=0.2), dict(point=-0.1, box=0.8)])
def test_shares_that_are_no_probabilities_are_refused(shares):
  with pytest.raises(UserError, match='adding up to 1'):
    PromptConfig(**shares)
