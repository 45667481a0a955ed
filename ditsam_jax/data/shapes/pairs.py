"""Minimal pairs: two expressions that differ in one word and refer to different shapes of a scene.

'the circle left of the red star' and 'the circle right of the red star', for example. A model that ignores the word is
right about one of the two, so guessing scores 50 %.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from ditsam_jax.data.shapes.expressions import ORDINALS, candidates
from ditsam_jax.data.shapes.scenes import Shape

PAIR_KINDS = ('left / right', 'above / below', 'first / last', 'larger / smaller')
_SWAPS = (
  ('left', 'right', 'left / right'),
  ('above', 'below', 'above / below'),
  ('top', 'bottom', 'above / below'),
  ('largest', 'smallest', 'larger / smaller'),
)


@dataclasses.dataclass(frozen=True)
class MinimalPair:
  """Two expressions that differ in one word, and the index of the shape that each refers to."""

  kind: str  # one of PAIR_KINDS
  texts: tuple[str, str]
  targets: tuple[int, int]


def minimal_pairs(shapes: Sequence[Shape], side: float, rng: np.random.Generator) -> list[MinimalPair]:
  """Returns up to one minimal pair of each kind about a scene, drawn from `rng`; `side` is the image side in px."""
  target_of = {
    text: target
    for target, choices in enumerate(candidates(shapes, side, rng))
    for kind in ('relation', 'order', 'comparison')
    for text in choices[kind]
  }
  found: dict[str, list[MinimalPair]] = {kind: [] for kind in PAIR_KINDS}
  for text, target in target_of.items():
    for kind, other in _opposites(text, target_of):
      if target_of[other] != target:
        found[kind].append(MinimalPair(kind, (text, other), (target, target_of[other])))
  return [pairs[rng.integers(len(pairs))] for pairs in found.values() if pairs]


def _opposites(text: str, known: dict[str, int]) -> list[tuple[str, str]]:
  """(kind, text) of the known expressions that differ from `text` in one word; each pair is found once."""
  words = text.split()
  found = [(kind, text.replace(f' {one}', f' {other}', 1)) for one, other, kind in _SWAPS if one in words]
  if ORDINALS[0] in words:
    later = [text.replace(ORDINALS[0], ordinal, 1) for ordinal in ORDINALS[1:]]
    found += [('first / last', last) for last in [other for other in later if other in known][-1:]]
  return [(kind, other) for kind, other in found if other in known]
