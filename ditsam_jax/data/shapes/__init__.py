"""The embedded data set: procedurally generated coloured shapes with masks and referring expressions."""

from ditsam_jax.data.shapes.builder import Shapes, located, prepare
from ditsam_jax.data.shapes.expressions import EXPRESSION_KINDS, MAX_TOKENS, colour_candidates, random_chance
from ditsam_jax.data.shapes.phrases import MOST_TARGETS, Phrase, phrases
from ditsam_jax.data.shapes.scenes import SPLITS, ScenesConfig

__all__ = [
  'EXPRESSION_KINDS',
  'MAX_TOKENS',
  'MOST_TARGETS',
  'Phrase',
  'SPLITS',
  'ScenesConfig',
  'Shapes',
  'colour_candidates',
  'located',
  'phrases',
  'prepare',
  'random_chance',
]
