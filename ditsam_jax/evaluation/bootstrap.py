"""Bootstrap confidence intervals over images."""

import numpy as np

from ditsam_jax.evaluation.metrics import mask_iou

RESAMPLES = 1000
_AT_ONCE = 2**20  # images drawn at a time, which bounds memory


def intervals(
  image_ids: np.ndarray, overlaps: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, tuple[float, float]]:
  """95 % intervals of mIoU and oIoU in percent: (low, high) of each; empty without samples.

  Whole images are drawn with replacement, each with all its samples. Expressions of one image are not
  independent: most ask for the same few objects, and a model that misses one of them misses it for all of its
  expressions. Drawing samples one by one would take them for as many facts, and the intervals would be too narrow.

  Args:
    image_ids: of each sample, [N].
    overlaps: intersection and union of each sample in pixels, int64 [N, 2].
    resamples: how many splits are drawn.
    seed: of the draw; the same samples give the same intervals.
  """
  if not len(image_ids):
    return {}
  _, image = np.unique(image_ids, return_inverse=True)
  columns = (np.ones(len(overlaps)), mask_iou(*overlaps.T), *overlaps.T)
  # All that either figure needs to know of an image: how many samples, and the sums of IoU, intersections, unions.
  sums = np.stack([np.bincount(image, column) for column in columns], axis=1)
  images = len(sums)
  rng, drawn = np.random.default_rng(seed), []
  for start in range(0, resamples, step := max(1, _AT_ONCE // images)):
    count = min(step, resamples - start)
    draws = rng.integers(images, size=(count, images)) + images * np.arange(count)[:, None]
    weights = np.bincount(draws.ravel(), minlength=count * images).reshape(count, images)
    drawn.append(weights.astype(np.float64) @ sums)
  samples, iou, intersection, union = np.concatenate(drawn).T
  # Unions of 0: empty predictions of empty truths and nothing else, which are right.
  overall = np.divide(intersection, union, out=np.ones_like(union), where=union > 0)
  return {
    name: tuple((100 * np.quantile(values, (0.025, 0.975))).tolist())
    for name, values in (('mIoU', iou / samples), ('oIoU', overall))
  }
