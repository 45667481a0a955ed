"""Bootstrap intervals agree with closed forms and a plain loop."""

import time

import numpy as np
import pytest

from ditsam_jax.evaluation.bootstrap import RESAMPLES, intervals


def split(images, per_image, seed=0, same=False):
  """Image ids and pixel counts; with `same`, all samples of an image have the same IoU."""
  rng = np.random.default_rng(seed)
  ids = np.repeat(rng.permutation(10 * images)[:images], per_image)
  union = np.full(len(ids), 1000)
  share = np.repeat(rng.random(images), per_image) if same else rng.random(len(ids))
  return ids, np.stack([(share * 1000).astype(int), union], 1)


def test_widths_agree_with_the_central_limit_theorem():
  ids, overlaps = split(2000, 1)
  low, high = intervals(ids, overlaps)['mIoU']
  iou = overlaps[:, 0] / 10
  assert (low + high) / 2 == pytest.approx(iou.mean(), abs=0.1)
  assert high - low == pytest.approx(2 * 1.96 * iou.std() / 2000**0.5, rel=0.1)


def test_images_are_resampled_not_samples():
  low, high = intervals(*split(300, 1, same=True))['mIoU']
  ids, overlaps = split(300, 9, same=True)
  # Nine equal samples of an image carry the information of one.
  assert intervals(ids, overlaps)['mIoU'] == pytest.approx((low, high), abs=1e-6)
  as_if_independent = intervals(np.arange(len(ids)), overlaps)['mIoU']
  assert as_if_independent[1] - as_if_independent[0] < 0.4 * (high - low)


@pytest.mark.verifies(
  '95 % intervals of mIoU and oIoU', against='a plain loop over the drawn images', within='1e-6 relative'
)
def test_equal_to_a_plain_loop_over_resampled_images():
  rng = np.random.default_rng(3)
  ids = rng.integers(5, 17, 60)
  union = rng.integers(1, 50, 60)
  overlaps = np.stack([rng.integers(0, union + 1), union], 1)
  images, rng = np.unique(ids), np.random.default_rng(0)
  miou, oiou = [], []
  for draw in rng.integers(len(images), size=(RESAMPLES, len(images))):
    rows = np.concatenate([np.flatnonzero(ids == images[k]) for k in draw])
    miou.append(100 * np.mean(overlaps[rows, 0] / overlaps[rows, 1]))
    oiou.append(100 * overlaps[rows, 0].sum() / overlaps[rows, 1].sum())
  found = intervals(ids, overlaps)
  assert found['mIoU'] == pytest.approx(np.quantile(miou, (0.025, 0.975)))
  assert found['oIoU'] == pytest.approx(np.quantile(oiou, (0.025, 0.975)))


def test_no_samples_one_image_and_empty_masks():
  assert intervals(np.zeros(0), np.zeros((0, 2), int)) == {}
  assert intervals(np.array([4, 4]), np.array([[1, 2], [1, 4]])) == {
    'mIoU': pytest.approx((37.5, 37.5)),
    'oIoU': pytest.approx((100 / 3, 100 / 3)),
  }
  assert intervals(np.array([4, 5]), np.zeros((2, 2), int))['oIoU'] == (100, 100)


def test_a_complete_split_is_fast():
  ids, overlaps = split(1500, 7)  # RefCOCO's validation split
  started = time.perf_counter()
  intervals(ids, overlaps)
  assert time.perf_counter() - started < 2
