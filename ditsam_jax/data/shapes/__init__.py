"""The embedded data set: procedurally generated coloured shapes with masks and referring expressions."""

from typing import TYPE_CHECKING, Any

from ditsam_jax.data.shapes.expressions import EXPRESSION_KINDS, MAX_TOKENS, colour_candidates, random_chance
from ditsam_jax.data.shapes.pairs import PAIR_KINDS, MinimalPair, minimal_pairs
from ditsam_jax.data.shapes.phrases import MOST_TARGETS, Phrase, phrases
from ditsam_jax.data.shapes.scenes import SPLITS, ScenesConfig

if TYPE_CHECKING:
  from ditsam_jax.data.shapes.builder import Shapes, located, prepare

__all__ = [
  'EXPRESSION_KINDS',
  'MAX_TOKENS',
  'MinimalPair',
  'MOST_TARGETS',
  'PAIR_KINDS',
  'Phrase',
  'SPLITS',
  'ScenesConfig',
  'Shapes',
  'colour_candidates',
  'located',
  'minimal_pairs',
  'phrases',
  'prepare',
  'random_chance',
]


def __getattr__(name: str) -> Any:
  """Imports the builder on first use: scenes and expressions do not need TFDS."""
  if name not in ('Shapes', 'located', 'prepare'):
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
  from ditsam_jax.data.shapes import builder

  return getattr(builder, name)
