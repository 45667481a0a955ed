"""What answering without reading would score on the very samples evaluated, given perfect masks.

Both figures are expected values. A perfect mask of the right object has IoU 1 and of a wrong one 0 (visible
pixels are disjoint), so the chance of naming the right object is the expected mIoU, and every P@X too.
"""

from collections.abc import Callable, Sequence

ColourCandidates = Callable[[str, Sequence[str]], list[int]]

RANDOM_OBJECT = 'random object'
COLOURS_ONLY = 'colours only'


def random_object(object_count: int) -> float:
  """Expected IoU (0 to 1) of choosing one of the image's objects blindly."""
  return 1 / object_count


def colours_only(
  expression: str, categories: Sequence[str], object_index: int, candidates: ColourCandidates
) -> float:
  """Expected IoU (0 to 1) of choosing blindly among the objects whose colour fits the expression's colour words.

  `candidates(expression, categories)` lists the objects left; with none left the choice is among all.
  """
  left = candidates(expression, categories) or range(len(categories))
  return 1 / len(left) if object_index in left else 0.0
