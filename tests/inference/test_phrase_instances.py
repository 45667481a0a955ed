"""Single objects in a sentence's mask: which points ask for them, and which masks and pieces are returned."""

import numpy as np
import pytest

from ditsam_jax.geometry.masks import decode_rle, encode_rle
from ditsam_jax.inference.mask_records import Found, bounds
from ditsam_jax.inference.phrase_instances import Named

SIZE = 60, 100


def rectangle(x0, y0, x1, y1):
  mask = np.zeros(SIZE, bool)
  mask[y0:y1, x0:x1] = True
  return mask


def found(mask, score=0.9):
  return Found(encode_rle(mask), int(mask.sum()), bounds(mask), score, 0.95, (1.0, 2.0), (0, 0, 100, 60))


def named(mask, pixel=2.0):
  return Named(mask, score=0.8, stability=0.85, pixel=pixel)


def instances(mask, *objects, least_area=0):
  """Masks of the instances, and whether each is one of `objects`."""
  given = [found(*each) if isinstance(each, tuple) else found(each) for each in objects]
  returned = named(mask).instances(given, least_area)
  return [decode_rle(each.rle) for each in returned], [
    given.index(each) if each in given else None for each in returned
  ]


def test_points_are_those_of_the_grid_in_the_mask_and_the_middle_of_each_piece():
  mask = rectangle(10, 10, 31, 31) | rectangle(61, 41, 66, 46)
  grid = np.array([[20.0, 20.0], [30.9, 30.9], [31.0, 30.0], [50.0, 30.0], [100.0, 60.0]])
  points = named(mask).points((0, 0, 100, 60), grid)
  assert points.tolist() == [[20, 20], [30.9, 30.9], [20, 20], [63, 43]]


def test_points_of_a_crop_are_its_own():
  points = named(rectangle(10, 10, 31, 31)).points((20, 5, 70, 55), np.array([[5.0, 10.0], [15.0, 10.0]]))
  assert points.tolist() == [[5, 10]]


def test_an_empty_mask_has_no_points_and_no_instances():
  nothing = named(np.zeros(SIZE, bool))
  assert nothing.points((0, 0, 100, 60), np.array([[5.0, 5.0]])).shape == (0, 2)
  assert nothing.instances([], 0) == []


def test_an_object_is_returned_without_its_parts():
  whole, part = rectangle(10, 10, 40, 40), rectangle(10, 10, 40, 22)
  assert instances(whole, (part, 0.95), (whole, 0.9))[1] == [1]


def test_a_less_certain_group_gives_way_to_its_members():
  one, other = rectangle(10, 10, 30, 30), rectangle(30, 10, 50, 30)
  assert instances(one | other, (one, 0.95), (one | other, 0.8), (other, 0.9))[1] == [0, 2]


def test_objects_that_overlap_a_little_are_both_returned():
  one, other = rectangle(10, 10, 30, 30), rectangle(25, 10, 45, 30)
  assert instances(one | other, one, other)[1] == [0, 1]


def test_a_piece_without_an_object_is_returned_with_the_scores_of_the_sentence():
  one, other = rectangle(10, 10, 30, 30), rectangle(50, 10, 57, 19)
  masks, origin = instances(one | other, one)
  assert origin == [0, None]
  np.testing.assert_array_equal(masks[1], other)
  added = named(one | other).instances([found(one)], 0)[1]
  assert (added.score, added.stability, added.area, added.box) == (0.8, 0.85, 63, (50, 10, 56, 18))
  assert other[int(added.point[1]), int(added.point[0])] and added.crop == (0, 0, 100, 60)


def test_the_rest_of_a_piece_is_returned_if_it_is_no_edge():
  one, other = rectangle(10, 10, 30, 30), rectangle(30, 10, 50, 30)
  masks, origin = instances(one | other, one)
  assert origin == [0, None]
  np.testing.assert_array_equal(masks[1], other)
  assert instances(rectangle(7, 7, 33, 33), one)[1] == [0]  # an edge of 3 pixels, less than 4 logits


@pytest.mark.parametrize('side, kept', [(2, False), (3, True)])
def test_specks_are_dropped(side, kept):
  one = rectangle(10, 10, 30, 30)
  assert instances(one | rectangle(60, 10, 60 + side, 10 + side), one)[1] == [0, None][: 1 + kept]


def test_pieces_respect_the_smallest_area():
  one, other = rectangle(10, 10, 30, 30), rectangle(50, 10, 57, 19)
  assert instances(one | other, one, least_area=63)[1] == [0, None]
  assert instances(one | other, one, least_area=64)[1] == [0]
