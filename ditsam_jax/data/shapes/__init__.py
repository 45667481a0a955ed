"""The embedded data set: procedurally generated coloured shapes with masks and referring expressions."""

from ditsam_jax.data.shapes.builder import Shapes, located, prepare
from ditsam_jax.data.shapes.expressions import EXPRESSION_KINDS, MAX_TOKENS, colour_candidates, random_chance
from ditsam_jax.data.shapes.pairs import PAIR_KINDS, MinimalPair, minimal_pairs
from ditsam_jax.data.shapes.phrases import MOST_TARGETS, Phrase, phrases
from ditsam_jax.data.shapes.scenes import SPLITS, ScenesConfig

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
