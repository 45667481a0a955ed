"""Rephrased expressions mean the same, fit the model, and leave the standard splits as they are."""

import collections
import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data import shapes
from ditsam_jax.data.shapes import builder
from ditsam_jax.data.shapes.expressions import candidates, vocabulary
from ditsam_jax.data.shapes.phrases import tokens
from ditsam_jax.data.shapes.rephrasing import LONGEST, rephrase
from ditsam_jax.data.shapes.scenes import ScenesConfig
from ditsam_jax.models.config import sharp
from ditsam_jax.tokenization import Tokenizer

PLAIN = ScenesConfig(train=4, val=2, test=2)
RICH = dataclasses.replace(PLAIN, rephrased_per_object=6, phrases_per_scene=4)
VOCABULARY = vocabulary(rephrased=True)
PARAPHRASES = Path(__file__).with_name('shapes_paraphrases.tsv')

# Every word that carries meaning, written out here again: word -> what the grammar calls it.
MEANING = {
  **{
    word: word for word in 'red green blue yellow purple orange circle square triangle star cross small large'.split()
  },
  **dict(crimson='red', scarlet='red', emerald='green', azure='blue', golden='yellow', violet='purple'),
  **dict(tangerine='orange', disc='circle', disk='circle', dot='circle', ball='circle', box='square', block='square'),
  **dict(plus='cross', little='small', tiny='small', big='large', huge='large', biggest='largest', largest='largest'),
  **dict(tiniest='smallest', littlest='smallest', smallest='smallest', first='first', second='second', third='third'),
  **dict(fourth='fourth', one='shape', two='second', three='third', four='fourth', leftmost='first left'),
  **dict(rightmost='first right', topmost='first top', highest='first top', uppermost='first top'),
  **dict(bottommost='first bottom', lowest='first bottom', left='left', right='right', top='top', bottom='bottom'),
  **dict(above='above', over='above', higher='above', below='below', under='below', beneath='below'),
  **dict(underneath='below', lower='below', furthest='first', farthest='first', far='first', very='first'),
  **dict(shape='shape', object='shape', thing='shape', figure='shape', item='shape'),
  **{'not': 'not', 'isn': 'not', 'no': 'not'},
}
# Several words that mean something together, in the words above.
TOGETHER = [
  (r'(?:from )?left to right', 'from the left'),
  (r'(?:from )?right to left', 'from the right'),
  (r'(?:from )?top to bottom', 'from the top'),
  (r'(?:from )?bottom to top', 'from the bottom'),
  (r'(second|third|fourth) (leftmost|rightmost)', lambda match: f'{match[1]} {match[2].removesuffix("most")}'),
  (r'(second|third|fourth) (topmost|highest|uppermost)', r'\1 top'),
  (r'(second|third|fourth) (bottommost|lowest)', r'\1 bottom'),
  (r'(?:at|on) the (left|right|top|bottom)$', r'first \1'),
  (r'anything but|in another colour than', 'not'),
  (r'number one', 'first'),
]
SILENT = set(
  'the a that is are which of to on side from in sign than t number find select show me please segment where i want '
  'mark all but and at counting starting coloured colour with it size'.split()
)


def meaning(text):
  """The words that matter, in the grammar's words. 'shape' is not counted: 'one' is a filler as often as a noun."""
  found = collections.Counter()
  for phrase, plain in TOGETHER:
    text = re.sub(phrase, plain, text)
  for word in re.findall('[a-z]+', text):
    known = next(stem for stem in (word, word[:-1], word[:-2]) if stem in MEANING or stem in SILENT)
    if known not in SILENT:
      found.update(MEANING[known].split())
  del found['shape']
  return found


@pytest.fixture(scope='module')
def sentences():
  """(text, rephrased) of scenes of the training split: expressions and phrases."""
  rng, pairs = np.random.default_rng(3), []
  for index in range(60):
    scene, expressions = builder.described_scene(PLAIN, 'train', index)
    texts = [text for described in expressions for text, _ in described]
    texts += [phrase.text for phrase in shapes.phrases(scene.shapes, PLAIN.image_size, 6, rng)]
    pairs += [(text, rephrase(text, rng)) for text in texts]
  return pairs


def test_rephrasings_mean_the_same(sentences):
  wrong = [(text, said) for text, said in sentences if meaning(text) != meaning(said)]
  assert wrong == []


def test_target_and_anchor_of_a_relation_stay_apart(sentences):
  """In 'X left of Y' and 'left of Y, X', the words of X and those of Y are not exchanged."""
  relation = re.compile(
    '(?:(?:to|on) the )?(?:left|right)(?: side)? of|above|over|higher than|below|underneath|under|beneath|lower than'
  )
  checked = 0
  for text, said in sentences:
    if not re.search(' (left of|right of|above|below) ', text):
      continue
    target, anchor = re.split(' (?:left of|right of|above|below) ', text)
    before, after = relation.split(said, maxsplit=1)
    if meaning(before) or re.search('shape|object|thing|figure|item|one', before):
      assert (meaning(before), meaning(after)) == (meaning(target), meaning(anchor)), (text, said)
      checked += 1
    elif len(parts := after.split(', ')) == 2:
      assert [meaning(part) for part in parts] == [meaning(anchor), meaning(target)], (text, said)
      checked += 1
  assert checked > 200


def test_negations_exclude_the_same(sentences):
  for text, said in sentences:
    if ' that is not ' in text:
      wanted, excluded = text.split(' that is not ')
      before, after = re.split(r"\bnot\b|\bisn't\b|\bno\b|anything but|in another colour than", said)
      assert (meaning(before), meaning(after)) == (meaning(wanted), meaning(excluded)), (text, said)


def test_there_are_many_ways_to_say_a_thing():
  rng = np.random.default_rng(0)
  assert len({rephrase('the second large red circle from the left', rng) for _ in range(400)}) > 250
  with pytest.raises(ValueError, match="'a red circle' is not an expression about shapes"):
    rephrase('a red circle', rng)


def test_the_vocabulary_has_their_words(sentences):
  words = {re.sub('s$', '', word) for _, said in sentences for word in re.findall('[a-z]+', said)}
  assert {word for word in words if not {*VOCABULARY} & {word, f'{word}s', re.sub('e$', '', word)}} == set()


def test_training_records_gain_rephrasings_and_phrases_and_evaluation_records_do_not():
  for split in ('val', 'test'):
    assert contents(RICH, split, 1) == contents(PLAIN, split, 1)
  plain, rich = contents(PLAIN, 'train', 1), contents(RICH, 'train', 1)
  number = len(plain)
  for (category, mask, texts), (rich_category, rich_mask, rich_texts) in zip(plain, rich):
    assert (category, mask, texts) == (rich_category, rich_mask, rich_texts[: len(texts)])
    assert len(texts) < len(rich_texts) <= len(texts) + 6
    assert all(meaning(text) in [meaning(own) for own in texts] for text in rich_texts)
  assert len(rich) == number + 4 and {category for category, _, _ in rich[number:]} == {'phrase'}
  assert all(tokens(text, rephrased=True) <= LONGEST for _, _, texts in rich for text in texts)


def test_orders_are_added_in_training_only_and_rephrased():
  more = dataclasses.replace(RICH, orders_per_object=3, rephrased_per_object=8)
  assert contents(more, 'val', 1) == contents(PLAIN, 'val', 1)
  scene, _ = builder.described_scene(PLAIN, 'train', 1)
  possible = candidates(scene.shapes, PLAIN.image_size, np.random.default_rng(0))
  added = 0
  for (_, _, plain), (_, _, texts), choices in zip(contents(PLAIN, 'train', 1), contents(more, 'train', 1), possible):
    number = min(3, len({*choices['order']} - {*plain}))
    orders = texts[len(plain) : len(plain) + number]
    assert texts[: len(plain)] == plain and {*orders} <= {*choices['order']} - {*plain} and len({*orders}) == number
    assert len(plain) + number < len(texts) <= len(plain) + number + 8
    added += number
  assert added > 10


def test_absent_phrases_follow_the_others_and_have_empty_masks():
  without = contents(RICH, 'train', 1)
  objects = contents(dataclasses.replace(RICH, absent_per_scene=3), 'train', 1)
  assert objects[: len(without)] == without
  empty = builder._encoded('.png', np.zeros((128, 128), np.uint8), builder._MASK_OPTIONS).getvalue()
  assert [(category, mask) for category, mask, _ in objects[len(without) :]] == [('phrase', empty)] * 3


def contents(config, split, index):
  record = builder.make_record(config, split, index)
  return [(made['category'], made['mask'].getvalue(), made['expressions']) for made in record['objects']]


def test_the_mask_of_a_phrase_is_the_union_of_what_it_names():
  source = builder.make_record(RICH, 'train', 2)
  scene, _ = builder.described_scene(RICH, 'train', 2)
  known = {
    phrase.text: phrase.targets
    for seed in range(40)
    for phrase in shapes.phrases(scene.shapes, RICH.image_size, 60, np.random.default_rng(seed))
  }
  named = [made for made in source['objects'] if made['category'] == 'phrase']
  for made in named:
    targets = known[made['expressions'][0]]
    expected = np.any([scene.masks[i] for i in targets], axis=0) if targets else np.zeros_like(scene.masks[0])
    assert (
      made['mask'].getvalue() == builder._encoded('.png', np.uint8(expected) * 255, builder._MASK_OPTIONS).getvalue()
    )


@pytest.mark.slow
def test_the_written_paraphrases_belong_to_their_scenes_and_are_not_of_the_grammar(tmp_path):
  with PARAPHRASES.open(encoding='utf-8') as file:
    rows = list(csv.DictReader(file, delimiter='\t'))
  assert len(rows) == 300
  assert set(collections.Counter(row['kind'] for row in rows).values()) == {60}
  (tmp_path / 'vocab.txt').write_text('\n'.join(VOCABULARY) + '\n')
  tokenizer = Tokenizer(tmp_path / 'vocab.txt', sharp().max_text_tokens)
  rng = np.random.default_rng(0)
  for row in rows:
    _, expressions = builder.described_scene(ScenesConfig(), 'test', int(row['scene']))
    assert (row['grammar'], row['kind']) in expressions[int(row['object'])]
    assert not tokenizer.cut(row['paraphrase']) and not tokenizer.cut(row['second']), row
    assert not {row['paraphrase'], row['second']} & {rephrase(row['grammar'], rng) for _ in range(300)}, row
