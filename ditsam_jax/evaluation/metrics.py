"""mIoU, oIoU and P@X of pixel counts."""

import numpy as np

PRECISION_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# The release's: an empty prediction of an empty truth counts as IoU 1, not as 0 / 0.
EPSILON = 1e-10


def mask_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
  """IoU (0 to 1) of each sample, float64 [N], of pixel counts [N]; 1 where both masks are empty."""
  return (np.asarray(intersection, np.float64) + EPSILON) / (np.asarray(union, np.float64) + EPSILON)


def rates(intersection: np.ndarray, union: np.ndarray) -> dict[str, float]:
  """mIoU, oIoU and P@0.50 .. P@0.95 in percent, of int64 pixel counts [N]; empty without samples.

  mIoU is the mean of the samples' IoU, oIoU the sum of intersections over that of unions, P@X the share of
  samples whose IoU is above X.
  """
  iou = mask_iou(intersection, union)
  if not iou.size:
    return {}
  overall = (int(np.sum(intersection)) + EPSILON) / (int(np.sum(union)) + EPSILON)
  precision = {f'P@{x:.2f}': 100 * float(np.mean(iou > x)) for x in PRECISION_THRESHOLDS}
  return {'mIoU': 100 * float(iou.mean()), 'oIoU': 100 * overall, **precision}
