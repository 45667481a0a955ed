"""mIoU, oIoU and P@X from integer intersections and unions."""

import dataclasses

import numpy as np

PRECISION_THRESHOLDS = tuple(percent / 100 for percent in range(50, 100, 5))
# The release's: an empty prediction of an empty truth counts as IoU 1, not as 0 / 0.
EPSILON = 1e-10


def mask_iou(intersection: np.ndarray, union: np.ndarray) -> np.ndarray:
  """IoU per sample, float64 [N], of pixel counts [N]; 1 where both masks are empty."""
  return (np.asarray(intersection, np.float64) + EPSILON) / (np.asarray(union, np.float64) + EPSILON)


@dataclasses.dataclass
class MaskMetrics:
  """Running sums of one group of samples; `rates` turns them into percent.

  Pixel counts are Python integers, so oIoU is exact however many samples are merged.
  """

  count: int = 0
  intersection: int = 0
  union: int = 0
  iou_sum: float = 0.0
  hits: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(len(PRECISION_THRESHOLDS), np.int64))

  def add(self, intersection: np.ndarray, union: np.ndarray) -> None:
    """Counts samples given their intersections and unions, integer [N] in pixels."""
    iou = mask_iou(intersection, union)
    self.count += iou.size
    self.intersection += int(np.sum(intersection))
    self.union += int(np.sum(union))
    self.iou_sum += float(iou.sum())
    self.hits += (iou[:, None] > np.asarray(PRECISION_THRESHOLDS)).sum(0)

  def merge(self, other: 'MaskMetrics') -> None:
    """Adds the samples of another part of the same split."""
    self.count += other.count
    self.intersection += other.intersection
    self.union += other.union
    self.iou_sum += other.iou_sum
    self.hits += other.hits

  def rates(self) -> dict[str, float]:
    """mIoU, oIoU and P@0.50 .. P@0.95 in percent; empty when nothing was counted."""
    if not self.count:
      return {}
    overall = (self.intersection + EPSILON) / (self.union + EPSILON)
    precision = {
      f'P@{threshold:.2f}': 100 * int(hits) / self.count
      for threshold, hits in zip(PRECISION_THRESHOLDS, self.hits)
    }
    return {'mIoU': 100 * self.iou_sum / self.count, 'oIoU': 100 * overall, **precision}


class GroupedMetrics:
  """One `MaskMetrics` over all samples and one for each named group (a kind of expression)."""

  def __init__(self) -> None:
    self.overall = MaskMetrics()
    self.groups: dict[str, MaskMetrics] = {}

  def add(self, intersection: np.ndarray, union: np.ndarray, groups: list[str]) -> None:
    """Counts samples, integer [N] pixels, each in the group named; '' is no group."""
    intersection, union, names = np.asarray(intersection), np.asarray(union), np.asarray(groups, str)
    self.overall.add(intersection, union)
    for name in dict.fromkeys(groups):
      if name:
        chosen = names == name
        self.groups.setdefault(name, MaskMetrics()).add(intersection[chosen], union[chosen])

  def merge(self, other: 'GroupedMetrics') -> None:
    """Adds the samples of another part of the same split, group by group."""
    self.overall.merge(other.overall)
    for name, metrics in other.groups.items():
      self.groups.setdefault(name, MaskMetrics()).merge(metrics)
