"""Expected scores of guessing an object and predicting its perfect mask.

The perfect mask of the right object has IoU 1, that of a wrong one 0, because visible pixels are disjoint. So the
probability of guessing the right object is the expected mIoU, and also every expected P@X.
"""

from collections.abc import Sequence

from ditsam_jax.data.shapes.expressions import colour_candidates, random_chance

ORACLES = ('random object', 'colours only')


def chances(expression: str, categories: Sequence[str], object_index: int) -> tuple[float, float]:
  """Expected IoU (0 to 1) of each of ORACLES on one sample of shapes.

  The first guesses among all objects of the image, the second among those of a colour that the expression allows.
  """
  left = colour_candidates(expression, categories) or range(len(categories))
  colours_only = 1 / len(left) if object_index in left else 0.0
  return random_chance(len(categories)), colours_only
