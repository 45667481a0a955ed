"""Expected scores of guessing, on an image that can be counted by hand."""

import numpy as np
import pytest

from ditsam_jax.evaluation.oracles import chances

OBJECTS = ('small red circle', 'large red star', 'small red star', 'large blue star', 'small green cross')


@pytest.mark.parametrize(
  'expression, target, candidates',
  [
    ('the small red circle', 0, 3),
    ('the blue star', 3, 1),
    ('the largest star', 1, 5),
    ('the star right of the green cross', 1, 5),
    ('the red star left of the blue star', 2, 3),
    ('the large star that is not red', 3, 2),
  ],
)
def test_chances_of_guessing_any_object_and_objects_of_a_matching_colour(expression, target, candidates):
  assert chances(expression, OBJECTS, target) == pytest.approx((1 / 5, 1 / candidates))


def test_expected_values_agree_with_ten_thousand_guesses():
  rng = np.random.default_rng(0)
  red = [0, 1, 2]
  hits = np.mean(rng.choice(red, 10_000) == 2)
  assert chances('the third red shape from the top', OBJECTS, 2)[1] == pytest.approx(hits, abs=0.02)


def test_without_a_matching_colour_all_objects_are_candidates():
  assert chances('the purple cross', OBJECTS, 4) == pytest.approx((1 / 5, 1 / 5))
