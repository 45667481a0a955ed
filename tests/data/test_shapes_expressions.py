"""An independent grammar interprets every expression, which must refer to its target and nothing else."""

import collections
import dataclasses
import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data import shapes
from ditsam_jax.data.shapes import builder, expressions
from ditsam_jax.data.shapes.scenes import ScenesConfig, Shape

CONFIG = ScenesConfig()
VOCABULARY = Path(shapes.__file__).parent / 'vocab.txt'
SIZE, COLOUR = 'small|large', 'red|green|blue|yellow|purple|orange'
KIND = 'circle|square|triangle|star|cross'
RANK = 'first|second|third|fourth'
NOUN = rf'(?:(?:{SIZE}) )?(?:(?:{COLOUR}) )?(?:{KIND}|shape)'
GRAMMAR = {
  'attribute': rf'the (?P<noun>{NOUN})',
  'relation': rf'the (?P<noun>{NOUN}) (?P<where>left of|right of|above|below) the (?P<anchor>{NOUN})',
  'order': rf'the (?P<rank>{RANK}) (?P<noun>{NOUN}) from the (?P<end>left|right|top|bottom)',
  'comparison': rf'the (?P<most>largest|smallest) (?P<noun>{NOUN})',
  'negation': rf'the (?P<noun>{NOUN}) that is not (?P<not>{SIZE}|{COLOUR}|a (?:{KIND}))',
}


def named(noun, scene):
  """Shapes with every property that the noun phrase names."""
  words = set(noun.split()) - {'shape'}
  return [s for s in scene if words <= {s.size, s.colour, s.kind}]


def meaning(expression, scene):
  """(kind, the shapes referred to) of an expression, interpreted as English."""
  kind, match = next((kind, match) for kind, pattern in GRAMMAR.items() if (match := re.fullmatch(pattern, expression)))
  candidates = named(match['noun'], scene)
  if kind == 'relation':
    [anchor] = named(match['anchor'], scene)
    side = {
      'left of': lambda s: s.x < anchor.x,
      'right of': lambda s: s.x > anchor.x,
      'above': lambda s: s.y < anchor.y,
      'below': lambda s: s.y > anchor.y,
    }[match['where']]
    candidates = [s for s in candidates if s is not anchor and side(s)]
  elif kind == 'order':
    distance_from_end = {
      'left': lambda s: s.x,
      'right': lambda s: -s.x,
      'top': lambda s: s.y,
      'bottom': lambda s: -s.y,
    }[match['end']]
    rank = RANK.split('|').index(match['rank'])
    candidates = sorted(candidates, key=distance_from_end)[rank : rank + 1]
  elif kind == 'comparison':
    extreme = max if match['most'] == 'largest' else min
    by_radius = extreme(candidates, key=lambda s: s.radius)
    by_area = extreme(candidates, key=lambda s: s.area)
    assert by_radius is by_area
    candidates = [by_radius]
  elif kind == 'negation':
    word = match['not'].removeprefix('a ')
    candidates = [s for s in candidates if word not in (s.size, s.colour, s.kind)]
  return kind, candidates


@functools.cache
def described(count=300, split='test'):
  return [builder.described_scene(CONFIG, split, i) for i in range(count)]


def all_expressions():
  for scene, expressions_of in described():
    for target, pairs in zip(scene.shapes, expressions_of):
      for text, kind in pairs:
        yield scene, target, text, kind


def test_every_expression_refers_only_to_its_target():
  for scene, target, text, kind in all_expressions():
    assert meaning(text, scene.shapes) == (kind, [target]), text


def test_no_expression_depends_on_small_differences():
  rng = np.random.default_rng(0)
  for scene, target, text, kind in all_expressions():
    nudged = [
      dataclasses.replace(s, x=s.x + dx * CONFIG.image_size, y=s.y + dy * CONFIG.image_size, radius=s.radius * scale)
      for s, (dx, dy), scale in zip(
        scene.shapes, rng.uniform(-0.029, 0.029, (len(scene.shapes), 2)), rng.uniform(0.94, 1.06, len(scene.shapes))
      )
    ]
    assert meaning(text, nudged) == (kind, [nudged[scene.shapes.index(target)]]), text


def test_swapping_left_and_right_describes_the_mirrored_scene():
  swap = {'left': 'right', 'right': 'left'}
  for scene, target, text, kind in all_expressions():
    mirrored = [dataclasses.replace(s, x=CONFIG.image_size - s.x) for s in scene.shapes]
    swapped = ' '.join(swap.get(word, word) for word in text.split())
    assert meaning(swapped, mirrored) == (kind, [mirrored[scene.shapes.index(target)]]), swapped


def test_modifiers_are_necessary():
  """Without its relation, rank, superlative or negation, the noun phrase fits several shapes."""
  for scene, _, text, kind in all_expressions():
    if kind != 'attribute':
      noun = re.fullmatch(GRAMMAR[kind], text)['noun']
      assert len(named(noun, scene.shapes)) > 1, text


def test_expressions_of_an_object_are_distinct_and_within_the_limit():
  for _, expressions_of in described():
    for pairs in expressions_of:
      assert 1 <= len(pairs) <= CONFIG.expressions_per_object
      assert len({text for text, _ in pairs}) == len(pairs)


def test_kinds_are_roughly_equally_frequent():
  counts = collections.Counter(kind for *_, kind in all_expressions())
  shares = np.array([counts[kind] for kind in GRAMMAR]) / counts.total()
  assert shares.min() > 0.15 and shares.max() < 0.25, shares


def test_guessing_scores_low_even_with_perfect_masks():
  chance, colours_only = [], []
  for scene, target, text, _ in all_expressions():
    categories = [s.category for s in scene.shapes]
    candidates = shapes.colour_candidates(text, categories)
    assert scene.shapes.index(target) in candidates
    chance.append(shapes.random_chance(len(categories)))
    colours_only.append(1 / len(candidates))
  assert np.mean(chance) < 0.25
  assert np.mean(colours_only) < 0.40


@pytest.mark.parametrize(
  'expression, expected',
  [
    ('the red circle', [0, 3]),
    ('the star that is not red', [1, 2]),
    ('the red star that is not small', [0, 3]),
    ('the largest shape', [0, 1, 2, 3]),
    ('the circle left of the red star', [0, 1, 2, 3]),
    ('the blue shape above the small red circle', [2]),
    ('the second green shape from the right', [1]),
    ('the small shape that is not a circle', [0, 1, 2, 3]),
  ],
)
def test_a_colour_oracle_uses_only_colour_words_about_the_target(expression, expected):
  categories = ['small red circle', 'large green star', 'small blue star', 'large red star']
  assert shapes.colour_candidates(expression, categories) == expected


def test_identical_shapes_side_by_side_are_described_only_by_order():
  """A hand-made scene: two shapes that differ only in position, 80 px apart, and no third one to relate them to."""
  twins = [Shape('star', 'red', 'small', 12.0, 0.0, x, 64.0) for x in (24.0, 104.0)]
  pairs_of_both = expressions.describe(twins, 128, 30, np.random.default_rng(0))
  texts = [{text for text, _ in pairs} for pairs in pairs_of_both]
  nouns = [''.join(words) for words in itertools.product(('', 'small '), ('', 'red '), ('star', 'shape'))]
  for own, (near, far) in zip(texts, (('left', 'right'), ('right', 'left'))):
    assert own
    assert own <= {
      f'the {rank} {noun} from the {side}' for noun in nouns for rank, side in (('first', near), ('second', far))
    }


def test_the_vocabulary_covers_every_word_and_spells_unknown_ones():
  from transformers import BertTokenizerFast

  tokenizer = BertTokenizerFast(str(VOCABULARY))
  lengths = set()
  for *_, text, _ in all_expressions():
    tokens = tokenizer.tokenize(text)
    assert tokens == text.split()
    lengths.add(len(tokenizer(text)['input_ids']))
  assert max(lengths) <= shapes.MAX_TOKENS
  assert '[UNK]' not in tokenizer.tokenize('The zebra, 42 of them!')
  assert tokenizer.pad_token_id == 0
  assert VOCABULARY.read_text().split('\n')[:-1] == list(expressions.vocabulary())


def test_orders_that_need_counting_come_first():
  given = [
    'the first star from the left',
    'the third star from the right',
    'the second red shape from the top',
    'the second star from the bottom',
    'the first star from the top',
    'the third red shape from the bottom',
  ]
  assert expressions.hardest_first(given) == [
    'the second red shape from the top',
    'the third red shape from the bottom',
    'the third star from the right',
    'the second star from the bottom',
    'the first star from the left',
    'the first star from the top',
  ]
