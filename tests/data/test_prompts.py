"""Prompts indicate their target, in SAM's encoding."""

import numpy as np
import pytest

from ditsam_jax.data.prompts import KINDS, PromptConfig, draw_kind, draw_target
from ditsam_jax.errors import UserError
from ditsam_jax.models.prompt_encoder import ABSENT

CONFIG = PromptConfig(point=0.4, box=0.3, background=0.2, none=0.1)


def box_mask(top, left, bottom, right, size=64):
  mask = np.zeros((size, size), np.uint8)
  mask[top : bottom + 1, left : right + 1] = 1
  return mask


def draw(kind, *masks, config=CONFIG, rng=None):
  return draw_target(kind, np.stack(masks), 0, config, rng or np.random.default_rng(0))


def test_kinds_are_as_frequent_as_configured():
  rng = np.random.default_rng(0)
  kinds, counts = np.unique([draw_kind(CONFIG, rng) for _ in range(4000)], return_counts=True)
  shares = dict(zip(kinds, counts / 4000))
  for kind in KINDS:
    assert shares[kind] == pytest.approx(getattr(CONFIG, kind), abs=0.03)


def test_clicks_are_uniform_over_the_pixels_of_the_object():
  mask = np.zeros((8, 8), np.uint8)
  mask[1, 2] = mask[5, 6] = mask[7, 0] = mask[0, 7] = 1
  rng = np.random.default_rng(0)
  seen = {}
  for _ in range(2000):
    points, labels, target = draw('point', mask, rng=rng)
    assert labels.tolist() == [1, -1]
    np.testing.assert_array_equal(target, mask)
    seen[tuple(points[0])] = seen.get(tuple(points[0]), 0) + 1
  assert set(seen) == {(2, 1), (6, 5), (0, 7), (7, 0)}  # (x, y)
  assert min(seen.values()) > 400


def test_a_click_on_the_background_hits_no_object_and_has_an_empty_target():
  masks = box_mask(0, 0, 7, 3, size=8), box_mask(0, 5, 6, 7, size=8)
  rng = np.random.default_rng(0)
  seen = set()
  for _ in range(200):
    points, labels, target = draw('background', *masks, rng=rng)
    assert labels.tolist() == [1, -1] and not target.any()
    seen.add(tuple(points[0].astype(int)))
  assert seen == {(4, y) for y in range(8)} | {(x, 7) for x in (5, 6, 7)}


def test_without_background_there_is_no_click():
  points, labels, target = draw('background', np.ones((4, 4), np.uint8))
  assert labels.tolist() == [ABSENT] * 2 and not points.any() and not target.any()


def test_without_a_prompt_the_target_is_all_objects():
  masks = box_mask(1, 1, 2, 2), box_mask(5, 5, 6, 6)
  points, labels, target = draw('none', *masks)
  assert labels.tolist() == [ABSENT] * 2 and not points.any()
  np.testing.assert_array_equal(target, masks[0] | masks[1])


@pytest.mark.parametrize('kind', ['point', 'box'])
def test_an_empty_object_has_an_empty_prompt(kind):
  _, labels, target = draw(kind, box_mask(9, 9, 8, 8), box_mask(1, 1, 2, 2))
  assert labels.tolist() == [ABSENT] * 2 and not target.any()


def test_a_box_without_jitter_touches_the_outermost_pixels():
  config = PromptConfig(box_jitter=0)
  points, labels, _ = draw('box', box_mask(10, 20, 30, 25), config=config)
  assert labels.tolist() == [2, 3]
  assert points.tolist() == [[20, 10], [25, 30]]


def test_box_sides_move_by_at_most_a_tenth_and_stay_inside():
  rng = np.random.default_rng(0)
  boxes = np.array([draw('box', box_mask(0, 20, 39, 29), rng=rng)[0] for _ in range(500)])
  assert boxes[:, 0, 1].min() == 0  # the top is the image's own
  np.testing.assert_allclose([boxes[:, 0, 0].min(), boxes[:, 0, 0].max()], [19, 21], atol=0.05)
  np.testing.assert_allclose([boxes[:, 1, 1].min(), boxes[:, 1, 1].max()], [35, 43], atol=0.2)


@pytest.mark.parametrize('shares', [dict(none=0.2), dict(point=-0.1, box=1.0), dict(point=np.nan), dict(box=np.nan)])
def test_invalid_shares_are_refused(shares):
  with pytest.raises(UserError, match='add up to 1'):
    PromptConfig(**shares)
