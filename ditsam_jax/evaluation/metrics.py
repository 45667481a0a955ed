"""mIoU, oIoU and P@X from pixel counts, and gRefCOCO's metrics for expressions that may have no target."""

import numpy as np

PRECISION_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
TARGET_THRESHOLDS = (0.7, 0.8, 0.9)
# As in the release; makes the IoU of two empty masks 1 instead of 0 / 0.
EPSILON = 1e-10


def mask_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
  """IoU (0 to 1) of each sample, float64 [N], from pixel counts [N]; 1 if both masks are empty."""
  return (np.asarray(intersection, np.float64) + EPSILON) / (np.asarray(union, np.float64) + EPSILON)


def rates(intersection: np.ndarray, union: np.ndarray) -> dict[str, float]:
  """mIoU, oIoU and P@0.50 .. P@0.95 in percent, from int64 pixel counts [N]; empty without samples.

  mIoU is the mean IoU of the samples, oIoU the sum of intersections divided by the sum of unions, and P@X the share of
  samples with an IoU above X.
  """
  iou = mask_iou(intersection, union)
  if not iou.size:
    return {}
  overall = (int(np.sum(intersection)) + EPSILON) / (int(np.sum(union)) + EPSILON)
  precision = {f'P@{x:.2f}': 100 * float(np.mean(iou > x)) for x in PRECISION_THRESHOLDS}
  return {'mIoU': 100 * float(iou.mean()), 'oIoU': 100 * overall, **precision}


def generalised_rates(intersection: np.ndarray, union: np.ndarray, target: np.ndarray) -> dict[str, float]:
  """gRefCOCO's metrics in percent, from int64 pixel counts [N]; `target` counts the truth's pixels, 0 without a target.

  A prediction is "nothing" if its mask is empty. gIoU is the mean IoU of the samples; the IoU of a no-target sample is
  1 if the prediction is nothing, else 0. cIoU is the sum of intersections divided by the sum of unions. N-acc is the
  share of no-target samples predicted as nothing, T-acc the share of target samples predicted as something. Pr@X is the
  share of target samples with an IoU of at least X. Metrics without samples are omitted.
  """
  intersection, union, target = (np.asarray(counts, np.int64) for counts in (intersection, union, target))
  has_target, nothing = target > 0, intersection + union == target  # the prediction has I + U - target pixels
  iou = np.where(has_target, intersection / np.maximum(union, 1), nothing)
  figures = {}
  if iou.size:
    pixels = int(union.sum())
    figures |= {'gIoU': iou.mean(), 'cIoU': int(intersection.sum()) / pixels if pixels else 1.0}
  if not has_target.all():
    figures['N-acc'] = nothing[~has_target].mean()
  if has_target.any():
    figures['T-acc'] = (~nothing[has_target]).mean()
    # Compares integers, because a quotient of exactly 0.7 may be rounded down.
    figures |= {
      f'Pr@{x:.2f}': np.mean(10 * intersection[has_target] >= round(10 * x) * union[has_target])
      for x in TARGET_THRESHOLDS
    }
  return {name: 100 * float(share) for name, share in figures.items()}
