"""Assignment of samples to the groups of breakdowns."""

from types import SimpleNamespace

import pytest

from ditsam_jax.evaluation.breakdowns import BREAKDOWNS


def label(name, expression='dog', target_pixels=10, image_pixels=100):
  (breakdown,) = (one for one in BREAKDOWNS if one.name == name)
  sample = SimpleNamespace(expression=expression, target_pixels=target_pixels, image_pixels=image_pixels)
  found = breakdown.label(sample)
  assert found in breakdown.labels
  return found


@pytest.mark.parametrize(
  'words, expected',
  [(1, '1-2'), (2, '1-2'), (3, '3-5'), (5, '3-5'), (6, '6-10'), (10, '6-10'), (11, '11+'), (40, '11+')],
)
def test_words(words, expected):
  assert label('words', ' '.join(['dog'] * words)) == expected


@pytest.mark.parametrize(
  'pixels, expected',
  [
    (0, 'none'),
    (1, '< 1 %'),
    (99, '< 1 %'),
    (100, '1-4 %'),
    (400, '4-16 %'),
    (1599, '4-16 %'),
    (1600, '>= 16 %'),
    (10000, '>= 16 %'),
  ],
)
def test_target_size_is_a_share_of_the_image(pixels, expected):
  assert label('target size', target_pixels=pixels, image_pixels=10000) == expected


@pytest.mark.parametrize(
  'expression, expected',
  [
    ('man on the LEFT', 'yes'),
    ('guy, right.', 'yes'),
    ('the second shape from the left', 'yes'),
    ('top-left cup', 'yes'),
    ('bright umbrella', 'no'),
    ('person in a topcoat', 'no'),
    ('', 'no'),
  ],
)
def test_position_words_are_whole_words(expression, expected):
  assert label('position words', expression) == expected
