"""IoU, mIoU, oIoU and P@X of small counts, worked out by hand."""

import numpy as np
import pytest

from ditsam_jax.evaluation.metrics import generalised_rates, mask_iou, rates


def test_two_empty_masks_have_iou_one():
  assert mask_iou(np.array([0, 0, 3]), np.array([0, 7, 4])) == pytest.approx([1, 0, 0.75], abs=1e-9)


@pytest.mark.verifies(
  "MIoU, oIoU, P@X, and gRefCOCO's gIoU, cIoU, N-acc and T-acc", against='worked out by hand', within='equal'
)
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


def test_no_samples_give_no_rates():
  assert rates(np.zeros(0, np.int64), np.zeros(0, np.int64)) == {}


@pytest.mark.verifies(
  "MIoU, oIoU, P@X, and gRefCOCO's gIoU, cIoU, N-acc and T-acc", against='worked out by hand', within='equal'
)
def test_grefcocos_metrics_by_hand():
  # Four targets of 10 pixels: IoU 0.7; IoU 0.9; predicted as nothing; missed, with 5 pixels elsewhere.
  # Three samples without a target: predicted as nothing twice, 8 pixels once.
  intersection, union = np.array([7, 9, 0, 0, 0, 0, 0]), np.array([10, 10, 10, 15, 0, 0, 8])
  figures = generalised_rates(intersection, union, np.array([10, 10, 10, 10, 0, 0, 0]))
  assert figures == pytest.approx(
    {
      'gIoU': 100 * (0.7 + 0.9 + 0 + 0 + 1 + 1 + 0) / 7,
      'cIoU': 100 * 16 / 53,
      'N-acc': 200 / 3,
      'T-acc': 75,
      'Pr@0.70': 50,
      'Pr@0.80': 25,
      'Pr@0.90': 25,
    }
  )


@pytest.mark.parametrize('tenths', [7, 8, 9])
def test_an_iou_at_the_threshold_counts_in_grefcoco(tenths):
  unions = np.arange(10, 100_000, 10)
  at = generalised_rates(unions // 10 * tenths, unions, unions)
  below = generalised_rates(unions // 10 * tenths - 1, unions, unions)
  assert at[f'Pr@0.{tenths}0'] == 100 and below[f'Pr@0.{tenths}0'] == 0


def test_metrics_without_samples_are_omitted():
  assert generalised_rates(*np.zeros((3, 0), int)) == {}
  assert set(generalised_rates([1], [2], [2])) == {'gIoU', 'cIoU', 'T-acc', 'Pr@0.70', 'Pr@0.80', 'Pr@0.90'}
  assert generalised_rates([0], [0], [0]) == {'gIoU': 100, 'cIoU': 100, 'N-acc': 100}
