"""An independent grammar in this file checks that every phrase refers to exactly its targets."""

import collections
import dataclasses
import functools
import re

import numpy as np
import pytest

from ditsam_jax.data import shapes
from ditsam_jax.data.shapes import builder
from ditsam_jax.data.shapes.phrases import absent_phrases, phrases, plural, tokens
from ditsam_jax.data.shapes.scenes import ScenesConfig
from ditsam_jax.tokenization import Tokenizer
from tests.data.test_shapes_expressions import VOCABULARY, named

CONFIG = ScenesConfig()
PHRASE = re.compile(r'the (?P<noun>[a-z ]+?)(?: (?P<where>left of|right of|above|below) the (?P<anchor>[a-z ]+))?')
SINGULARS = {'circles': 'circle', 'squares': 'square', 'triangles': 'triangle', 'stars': 'star', 'crosses': 'cross'}
SINGULARS |= {'shapes': 'shape'}


def meaning(text, scene):
  """Returns the indices of the shapes that a phrase refers to in English, and whether it is plural."""
  match = PHRASE.fullmatch(text)
  words = match['noun'].split()
  several = words[-1] in SINGULARS
  noun = ' '.join([*words[:-1], SINGULARS.get(words[-1], words[-1])])
  found = named(noun, scene)
  if match['where']:
    [anchor] = named(match['anchor'], scene)
    side = {
      'left of': lambda s: s.x < anchor.x,
      'right of': lambda s: s.x > anchor.x,
      'above': lambda s: s.y < anchor.y,
      'below': lambda s: s.y > anchor.y,
    }[match['where']]
    found = [s for s in found if s is not anchor and side(s)]
  return tuple(i for i, shape in enumerate(scene) if any(shape is one for one in found)), several


@functools.cache
def phrased(scenes=150):
  rng = np.random.default_rng(0)
  return [
    (scene, phrases(scene.shapes, CONFIG.image_size, 6, rng))
    for scene, _ in (builder.described_scene(CONFIG, 'test', i) for i in range(scenes))
  ]


def all_phrases():
  return [(scene, phrase) for scene, of_scene in phrased() for phrase in of_scene]


@pytest.mark.slow
def test_every_phrase_refers_to_exactly_its_targets():
  for scene, phrase in all_phrases():
    found, several = meaning(phrase.text, scene.shapes)
    assert found == phrase.targets, phrase
    assert several == (len(found) > 1) or not found, phrase


def test_no_phrase_depends_on_small_differences():
  rng = np.random.default_rng(0)
  for scene, phrase in all_phrases():
    moves = rng.uniform(-0.029, 0.029, (len(scene.shapes), 2)) * CONFIG.image_size
    nudged = [dataclasses.replace(s, x=s.x + dx, y=s.y + dy) for s, (dx, dy) in zip(scene.shapes, moves)]
    assert meaning(phrase.text, nudged)[0] == phrase.targets, phrase


def test_all_numbers_of_targets_from_none_to_five_are_frequent():
  counts = collections.Counter(len(phrase.targets) for _, phrase in all_phrases())
  assert set(counts) == set(range(6))
  shares = np.array([counts[number] for number in range(6)]) / counts.total()
  assert shares[:4].min() > 0.15 and shares[4:].min() > 0.05, shares
  assert max(len(of_scene) for _, of_scene in phrased()) == 6
  assert all(len({phrase.text for phrase in of_scene}) == len(of_scene) for _, of_scene in phrased())


def test_phrases_without_targets_are_near_misses():
  """Without a relation, all but one of their words match some shape of the scene."""
  for scene, phrase in all_phrases():
    match = PHRASE.fullmatch(phrase.text)
    if phrase.targets or match['where']:
      continue
    words = {SINGULARS.get(word, word) for word in match['noun'].split()} - {'shape'}
    assert max(len(words & {s.size, s.colour, s.kind}) for s in scene.shapes) == len(words) - 1 >= 1


ORDER = re.compile(r'the (?P<ordinal>first|second|third|fourth) (?P<noun>[a-z ]+) from the (left|right|top|bottom)')


def names_nothing(text, scene):
  if match := ORDER.fullmatch(text):
    return len(named(match['noun'], scene)) <= ('first', 'second', 'third', 'fourth').index(match['ordinal'])
  return meaning(text, scene)[0] == ()


def test_absent_phrases_name_nothing():
  rng = np.random.default_rng(0)
  kinds = collections.Counter()
  for scene, _ in phrased():
    texts = [phrase.text for phrase in absent_phrases(scene.shapes, CONFIG.image_size, 3, rng)]
    assert len(set(texts)) == len(texts) == 3
    assert all(names_nothing(text, scene.shapes) for text in texts), texts
    assert all(tokens(text) <= shapes.MAX_TOKENS for text in texts)
    kinds.update(
      'order' if ORDER.fullmatch(t) else 'relation' if PHRASE.fullmatch(t)['where'] else 'noun' for t in texts
    )
  assert min(kinds[kind] for kind in ('order', 'relation', 'noun')) / kinds.total() > 0.25, kinds


def test_phrases_fit_into_the_models_tokens():
  tokenizer = Tokenizer(VOCABULARY, shapes.MAX_TOKENS)
  for _, phrase in all_phrases():
    assert not tokenizer.cut(phrase.text)
    ids, mask = tokenizer([phrase.text])
    assert mask.sum() == tokens(phrase.text)


def test_plurals():
  assert [plural(noun) for noun in ('red circle', 'cross', 'shape')] == ['red circles', 'crosses', 'shapes']
