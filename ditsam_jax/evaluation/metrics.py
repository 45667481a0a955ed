"""mIoU, oIoU and P@X of pixel counts; for expressions that may name nothing, gRefCOCO's metrics."""

import numpy as np

PRECISION_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
TARGET_THRESHOLDS = (0.7, 0.8, 0.9)
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


def generalised_rates(intersection: np.ndarray, union: np.ndarray, target: np.ndarray) -> dict[str, float]:
  """gRefCOCO's metrics in percent, of int64 pixel counts [N]; `target`: the truth's, 0 where there is no target.

  A prediction is "nothing" where its mask is empty. gIoU is the mean of the samples' IoU, for no-target samples 1
  when the prediction is nothing and 0 otherwise; cIoU the sum of intersections over that of unions; N-acc the share
  of no-target samples called nothing; T-acc the share of target samples not called so; Pr@X the share of target
  samples whose IoU is at least X. A metric that has no samples is left out.
  """
  intersection, union, target = (np.asarray(counts, np.int64) for counts in (intersection, union, target))
  has_target, nothing = target > 0, intersection + union == target  # the prediction's pixels: I + U - target
  iou = np.where(has_target, intersection / np.maximum(union, 1), nothing)
  figures = {}
  if iou.size:
    pixels = int(union.sum())
    figures |= {'gIoU': iou.mean(), 'cIoU': int(intersection.sum()) / pixels if pixels else 1.0}
  if not has_target.all():
    figures['N-acc'] = nothing[~has_target].mean()
  if has_target.any():
    figures['T-acc'] = (~nothing[has_target]).mean()
    # As integers: a quotient that should be 0.7 may fall just below it.
    figures |= {
      f'Pr@{x:.2f}': np.mean(10 * intersection[has_target] >= round(10 * x) * union[has_target])
      for x in TARGET_THRESHOLDS
    }
  return {name: 100 * float(share) for name, share in figures.items()}
