"""IoU, mIoU, oIoU and P@X of counts small enough to work out by hand."""

import numpy as np
import pytest

from ditsam_jax.evaluation.metrics import mask_iou, rates


def test_an_empty_prediction_of_an_empty_truth_is_right():
  assert mask_iou(np.array([0, 0, 3]), np.array([0, 7, 4])) == pytest.approx([1, 0, 0.75], abs=1e-9)


def test_rates_by_hand():
  # IoU 0.6, 0, 1, 0.96
  figures = rates(np.array([6, 0, 0, 96]), np.array([10, 4, 0, 100]))
  assert figures['mIoU'] == pytest.approx(100 * (0.6 + 0 + 1 + 0.96) / 4)
  assert figures['oIoU'] == pytest.approx(100 * 102 / 114)
  assert [figures[f'P@{x}'] for x in ('0.50', '0.55', '0.65', '0.95')] == [75, 75, 50, 50]
  assert len(figures) == 2 + 10


def test_overall_iou_is_exact_for_counts_beyond_32_bits():
  intersection = np.full(5, 2**31, np.int64)
  assert rates(intersection, 2 * intersection)['oIoU'] == pytest.approx(50)


def test_nothing_counted_gives_no_rates():
  assert rates(np.zeros(0, np.int64), np.zeros(0, np.int64)) == {}
