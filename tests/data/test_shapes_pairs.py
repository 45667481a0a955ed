"""Minimal pairs differ in one word and refer to two shapes, by the independent grammar of the expressions' test."""

import collections

import numpy as np

from ditsam_jax.data import shapes
from ditsam_jax.data.shapes import builder
from ditsam_jax.data.shapes.expressions import describe
from ditsam_jax.data.shapes.scenes import ScenesConfig
from tests.data.test_shapes_expressions import meaning

CONFIG = ScenesConfig()
WORDS = {
  'left / right': [{'left', 'right'}],
  'above / below': [{'above', 'below'}, {'top', 'bottom'}],
  'first / last': [{'first', 'second'}, {'first', 'third'}, {'first', 'fourth'}],
  'larger / smaller': [{'largest', 'smallest'}],
}


def test_minimal_pairs():
  rng, counts = np.random.default_rng(0), collections.Counter()
  for index in range(100):
    scene, _ = builder.described_scene(CONFIG, 'test', index)
    for pair in shapes.minimal_pairs(scene.shapes, CONFIG.image_size, rng):
      counts[pair.kind] += 1
      one, other = (text.split() for text in pair.texts)
      assert len(one) == len(other)
      assert [{a, b} for a, b in zip(one, other) if a != b] in [[words] for words in WORDS[pair.kind]]
      assert pair.targets[0] != pair.targets[1]
      for text, target in zip(pair.texts, pair.targets):
        [found] = meaning(text, scene.shapes)[1]
        assert found is scene.shapes[target], text
      if pair.kind == 'first / last':
        assert not later(pair.texts[1], scene), pair
  assert set(counts) == set(shapes.PAIR_KINDS) and min(counts.values()) >= 40


def later(text, scene):
  """Whether the scene has one more shape in this order, which the grammar names without doubt."""
  ordinals = ['first', 'second', 'third', 'fourth']
  word = next(word for word in text.split() if word in ordinals)
  if word == 'fourth':
    return False
  choices = describe(scene.shapes, CONFIG.image_size, 99, np.random.default_rng(0))
  known = {said for described in choices for said, _ in described}
  return text.replace(word, ordinals[ordinals.index(word) + 1]) in known
