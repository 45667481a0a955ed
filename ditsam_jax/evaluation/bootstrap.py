"""Bootstrap confidence intervals over images."""

import numpy as np

from ditsam_jax.evaluation.metrics import mask_iou

RESAMPLES = 1000
_AT_ONCE = 2**20  # images drawn at a time, to limit memory


def intervals(image_ids: np.ndarray, overlaps: np.ndarray) -> dict[str, tuple[float, float]]:
  """Computes 95 % intervals (low, high) of mIoU and oIoU in percent; empty without samples.

  The same samples give the same intervals.

  Images are resampled with replacement, each with all its samples, because expressions of the same image are not
  independent: most refer to the same few objects, and a model that misses an object misses it for all its expressions.
  Resampling single expressions would make the intervals too narrow.

  Args:
    image_ids: image of each sample, [N].
    overlaps: intersection and union of each sample in pixels, int64 [N, 2].
  """
  if not len(image_ids):
    return {}
  _, image = np.unique(image_ids, return_inverse=True)
  columns = (np.ones(len(overlaps)), mask_iou(*overlaps.T), *overlaps.T)
  # Both metrics depend only on these sums per image: number of samples, IoU, intersections, unions.
  sums = np.stack([np.bincount(image, column) for column in columns], axis=1)
  images = len(sums)
  rng, drawn = np.random.default_rng(0), []
  for start in range(0, RESAMPLES, step := max(1, _AT_ONCE // images)):
    count = min(step, RESAMPLES - start)
    draws = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
    weights = np.bincount(draws.ravel(), minlength=count * images).reshape(count, images)
    drawn.append(weights.astype(np.float64) @ sums)
  samples, iou, intersection, union = np.concatenate(drawn).T
  # A union of 0 means that all predictions and truths are empty, which counts as correct.
  overall = np.divide(intersection, union, out=np.ones_like(union), where=union > 0)
  return {
    name: tuple((100 * np.quantile(values, (0.025, 0.975))).tolist())
    for name, values in (('mIoU', iou / samples), ('oIoU', overall))
  }
