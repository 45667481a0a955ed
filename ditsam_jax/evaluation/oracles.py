"""Scores of guessing with perfect masks, on the evaluated samples.

Expected values. A perfect mask of the right object has IoU 1 and of a wrong one 0 (visible pixels are
disjoint), so the chance of naming the right object is the expected mIoU, and every P@X too.
"""

from collections.abc import Sequence

from ditsam_jax.data.shapes.expressions import colour_candidates, random_chance

ORACLES = ('random object', 'colours only')


def chances(expression: str, categories: Sequence[str], object_index: int) -> tuple[float, float]:
  """Expected IoU (0 to 1) of each of ORACLES on one sample of shapes.

  The first chooses among all objects of the image, the second among those whose colour fits the sentence.
  """
  left = colour_candidates(expression, categories) or range(len(categories))
  colours_only = 1 / len(left) if object_index in left else 0.0
  return random_chance(len(categories)), colours_only
