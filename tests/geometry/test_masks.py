"""Run-length encoding agrees with pycocotools, and damaged run lengths never reach it."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from ditsam_jax.errors import UserError
from ditsam_jax.geometry.masks import bounding_box, decode_rle, encode_rle, shares_inside

MASKS = arrays.arrays(bool, strategies.tuples(strategies.integers(1, 40), strategies.integers(1, 40)))


@pytest.mark.verifies('Run lengths of masks', against='pycocotools', within='equal')
@settings(max_examples=80, deadline=None)
@given(MASKS)
def test_both_encodings_round_trip_and_pycocotools_reads_them(mask):
  rle = encode_rle(mask)
  assert isinstance(rle['counts'], str) and rle['size'] == list(mask.shape)
  np.testing.assert_array_equal(coco_mask.decode(rle).astype(bool), mask)
  np.testing.assert_array_equal(decode_rle(rle), mask)
  np.testing.assert_array_equal(decode_rle(rle | {'counts': rle['counts'].encode()}), mask)
  flat = mask.T.reshape(-1)
  borders = np.flatnonzero(np.diff(np.concatenate([[False], flat]).astype(int)))
  counts = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
  np.testing.assert_array_equal(decode_rle({'size': mask.shape, 'counts': counts}), mask)


@pytest.mark.verifies('Boxes of masks', against='pycocotools', within='equal')
@settings(max_examples=40, deadline=None)
@given(MASKS)
def test_bounding_boxes_equal_pycocotools(mask):
  x, y, width, height = coco_mask.toBbox(encode_rle(mask)).astype(int).tolist()
  assert bounding_box(mask) == ((x, y, x + width, y + height) if mask.any() else None)


@settings(max_examples=20, deadline=None)
@given(arrays.arrays(bool, (5, 20, 30)))
def test_shares_inside_equal_counted_pixels(masks):
  masks[:, 0, 0] = True
  rles = [encode_rle(mask) for mask in masks]
  expected = [[(mask & other).sum() / mask.sum() for other in masks[:3]] for mask in masks]
  np.testing.assert_allclose(shares_inside(rles, rles[:3]), expected)
  assert shares_inside([], rles).shape == (0, 5)


def test_long_runs_of_a_large_mask_round_trip():
  mask = np.zeros((3000, 4000), bool)
  mask[:, 1000:3000] = True
  mask[7, 2000] = False
  np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


@pytest.mark.parametrize(
  'rle, expected',
  [
    ({'size': [48, 64], 'counts': [2**62] * 4 + [48 * 64]}, 'over 2\\*\\*63'),  # 2**64 and the right sum, in C
    ({'size': [48, 64], 'counts': [2**64 + 48 * 64]}, 'over 2\\*\\*63'),
    ({'size': [48, 64], 'counts': [48 * 64, 2**70, -(2**70)]}, 'below 0'),
    ({'size': [48, 64], 'counts': [48 * 64 - 1]}, '3071 of 3072'),
    ({'size': [48, 64], 'counts': []}, '0 of 3072'),
    ({'size': [48, 64], 'counts': [48 * 64, 0.0]}, 'float'),
    ({'size': [48, 64], 'counts': [48 * 64, False]}, 'bool'),
    ({'size': [48, 64], 'counts': [48 * 64, 'a']}, 'str'),
    ({'size': [48, 64], 'counts': [[48 * 64]]}, 'list'),
    ({'size': [48, 64], 'counts': [48 * 64, None]}, 'NoneType'),
    ({'size': [48, 64], 'counts': None}, 'NoneType'),
    ({'size': [48, 64], 'counts': 7}, 'int'),
    ({'size': [48, 64], 'counts': ''}, 'no characters'),
    ({'size': [48, 64], 'counts': 'caf\xe9'}, 'an invalid '),
    ({'size': [48, 64], 'counts': '\ud800'}, 'an invalid '),
    ({'size': [48, 64], 'counts': 'PP\x07'}, 'an invalid '),
    ({'size': [48, 64], 'counts': 'oo'}, 'in the middle of a number'),
    ({'size': [48, 64], 'counts': 'o' * 30 + '0'}, '31 characters'),
    ({'size': [48, 64], 'counts': 'ooooooo?'}, 'below 0|more than'),
    ({'size': [48, 64], 'counts': '0' * 100_000}, '100000 runs'),
    ({'size': [48, 64], 'counts': 'PPP3' * 3}, 'more than|add up|below'),
    ({'size': [0, 64], 'counts': [0]}, 'size'),
    ({'size': [-48, -64], 'counts': [48 * 64]}, 'size'),
    ({'size': [2**40, 2**40], 'counts': [2**80]}, 'size'),
    ({'size': [10**6, 10**6], 'counts': [10**12]}, 'size'),
    ({'size': [48], 'counts': [48]}, 'expected'),
    ({'size': '48', 'counts': [48]}, 'expected'),
    ({'size': [48.0, 64.0], 'counts': [48 * 64]}, 'expected'),
    ({'counts': [48]}, 'expected'),
    ([1, 2], 'expected'),
  ],
)
def test_damaged_run_lengths_are_refused_in_one_line(rle, expected):
  with pytest.raises(UserError, match=expected) as error:
    decode_rle(rle)
  assert '\n' not in str(error.value) and len(str(error.value)) < 200


@settings(max_examples=300, deadline=None)
@given(
  strategies.one_of(
    strategies.text(alphabet=[chr(code) for code in range(44, 116)], max_size=60),
    strategies.binary(max_size=60),
    strategies.lists(strategies.one_of(strategies.integers(-3, 60), strategies.integers()), max_size=9),
  )
)
def test_any_counts_give_a_mask_or_a_user_error(counts):
  try:
    mask = decode_rle({'size': [6, 5], 'counts': counts})
  except UserError:
    return
  assert mask.shape == (6, 5)
  np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)
