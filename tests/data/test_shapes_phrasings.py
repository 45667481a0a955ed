"""Templates are well-formed, do not contradict one another, serve training only, and produce no written paraphrase."""

import collections
import csv
import dataclasses
import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data.shapes import builder, phrasings
from ditsam_jax.data.shapes.expressions import vocabulary
from ditsam_jax.data.shapes.phrases import tokens
from ditsam_jax.data.shapes.phrasings import FORMS, from_template, templates
from ditsam_jax.data.shapes.rephrasing import LONGEST, OPPOSITE, parsed
from ditsam_jax.data.shapes.scenes import ScenesConfig

FILE = Path(phrasings.__file__).with_name('phrasings.tsv')
PARAPHRASES = Path(__file__).with_name('shapes_paraphrases.tsv')
PLAIN = ScenesConfig(train=4, val=2, test=2)
MIRRORED = [
  ('above', 'below'), ('over', 'under'), ('overhead', 'underneath'), ('higher', 'lower'), ('highest', 'lowest'),
  ('high', 'low'), ('up', 'down'), ('upper', 'lower'), ('upward', 'downward'), ('upwards', 'downwards'),
  ('uppermost', 'lowermost'), ('topmost', 'bottommost'), ('top', 'bottom'), ('north', 'south'),
  ('largest', 'smallest'), ('biggest', 'tiniest'), ('biggest', 'smallest'), ('bigger', 'smaller'),
  ('larger', 'smaller'), ('big', 'small'), ('most', 'least'), ('greatest', 'least'), ('maximum', 'minimum'),
  ('max', 'min'), ('maximal', 'minimal'),
]  # fmt: skip


def test_every_line_is_a_template_with_the_slots_of_its_form_or_a_synonym():
  lines = FILE.read_text().splitlines()
  assert len({*lines}) == len(lines) > 1500
  for line in lines:
    form, text = line.split('\t')
    assert re.fullmatch(r"[a-z0-9,'?{}= ]+", text) and '  ' not in text, line
    if form == 'synonym':
      assert re.fullmatch('[a-z]+=[a-z]+( [a-z]+)*', text), line
      continue
    slots = collections.Counter(re.findall(r'\{(\w+)\}', text))
    groups = [slot if isinstance(slot, tuple) else (slot,) for slot in FORMS[form]]
    assert all(any(name in slots for name in group) for group in groups), line
    assert {*slots} <= {*itertools.chain(*groups), *(['opposite'] if form == 'order' else [])}, line
    assert len(re.sub(r'\{\w+\}', '', text).split()) <= 9, line


@pytest.mark.parametrize('pair', MIRRORED, ids='-'.join)
def test_no_form_has_a_template_and_its_mirror_image(pair):
  swap = {pair[0]: pair[1], pair[1]: pair[0]}
  for form in ('relation_above', 'relation_below', 'outermost_top', 'outermost_bottom', 'largest', 'smallest'):
    for template in templates()[form]:
      mirrored = re.sub('[a-z]+', lambda match: swap.get(match[0], match[0]), template)
      assert mirrored == template or mirrored not in templates()[form], (form, template)


def test_the_two_ways_to_see_a_relation_do_not_share_templates():
  sides = {template.replace('{side}', '{opposite}') for template in templates()['relation_side']}
  assert not sides & {*templates()['relation_opposite']}
  for above, below in (
    ('relation_above', 'relation_below'),
    ('largest', 'smallest'),
    ('outermost_top', 'outermost_bottom'),
  ):
    assert not {*templates()[above]} & {*templates()[below]}


def test_a_synonym_means_one_word():
  others = collections.Counter(other for ways in phrasings._synonyms().values() for other in {*ways})
  assert [other for other, count in others.items() if count > 1] == []


def test_words_are_in_the_vocabulary_behind_those_of_rephrasings():
  pieces = vocabulary(rephrased=True)
  assert len({*pieces}) == len(pieces) <= 640
  assert {word for word in phrasings.words() if len(word) > 1} <= {*pieces}
  assert pieces.index('?') < pieces.index('among')


@pytest.mark.parametrize(
  'text', ['the star', 'the red circles', 'the circles left of the star', 'the shapes that are not red']
)
def test_plurals_and_kinds_alone_have_no_template(text):
  if 'that are' in text:  # not of the grammar
    with pytest.raises(ValueError, match='is not an expression about shapes'):
      from_template(text, np.random.default_rng(0))
  else:
    assert from_template(text, np.random.default_rng(0)) is None


def test_what_is_said_can_be_read_back():
  """By a reader that was written apart, and not as the expression before."""
  rng, checked, before = np.random.default_rng(1), 0, 'the large star'
  for index in range(12):
    _, expressions = builder.described_scene(PLAIN, 'train', index)
    for text, _ in itertools.chain(*expressions):
      said = from_template(text, rng)
      if said is not None:
        assert could_be(text, said), (text, said)
        assert before == text or not could_be(before, said), (before, said)
        checked, before = checked + 1, text
  assert checked > 200


def test_they_are_added_in_training_only_and_change_nothing_else():
  more = dataclasses.replace(PLAIN, rephrased_per_object=3, templates_per_object=6)
  without = dataclasses.replace(more, templates_per_object=0)
  assert texts(more, 'val') == texts(PLAIN, 'val')
  added = 0
  for own, plain, rich in zip(texts(PLAIN, 'train'), texts(without, 'train'), texts(more, 'train')):
    assert rich[: len(plain)] == plain and len(rich) <= len(plain) + 6
    assert all(tokens(text, rephrased=True) <= LONGEST for text in rich)
    assert all(any(could_be(expression, text) for expression in own) for text in rich[len(plain) :])
    added += len(rich) - len(plain)
  assert added > 20


def texts(config, split):
  return [made['expressions'] for made in builder.make_record(config, split, 1)['objects']]


@pytest.mark.slow
def test_the_written_paraphrases_are_not_of_the_templates():
  with PARAPHRASES.open(encoding='utf-8') as file:
    rows = list(csv.DictReader(file, delimiter='\t'))
  for row in rows:
    for said in (row['paraphrase'], row['second']):
      assert not could_be(row['grammar'], said), row


def could_be(text, said):
  """Whether a template says the expression `text` so; written apart from the code under test."""
  form, words = parsed(text)
  if form == 'relation':
    target, relation, anchor = words
    slots = {'target': nouns(target), 'anchor': nouns(anchor)}
    if relation in ('above', 'below'):
      forms = [f'relation_{relation}']
    else:
      side = relation.split()[0]
      forms = ['relation_side', 'relation_opposite']
      slots |= {'side': {side}, 'opposite': {OPPOSITE[side]}}
  elif form == 'order':
    ordinal, noun, side = words
    place = ['first', 'second', 'third', 'fourth'].index(ordinal)
    slots = {
      'ordinal': {ordinal},
      'number': {['one', 'two', 'three', 'four'][place]},
      'rank': {['1st', '2nd', '3rd', '4th'][place]},
      'side': {side},
      'opposite': {OPPOSITE[side]},
      **both(noun),
    }
    outermost = f'outermost_{side}' if side in ('top', 'bottom') else 'outermost_across'
    forms = ['order', outermost] if place == 0 else ['order']
  elif form == 'comparison':
    forms, slots = [words[0]], both(words[1])
  elif form == 'negation':
    forms, slots = ['not_colour', 'not_size', 'not_kind'], {**both(words[0]), 'value': nouns(words[1])}
  else:
    *adjectives, kind = words[0].split()
    for one in adjectives:
      rest = nouns(' '.join([*(word for word in adjectives if word != one), kind]))
      if reads(said, ['coloured', 'sized'], {'kind': rest, 'colour': nouns(one), 'size': nouns(one)}):
        return True
    return False
  return reads(said, forms, slots)


def reads(said, forms, slots):
  bare = [said, *(match[1] for template in templates()['ask'] if (match := loose(template).fullmatch(said)))]
  return any(
    loose(template).fullmatch(text) and re.fullmatch(pattern(template, slots), text)
    for text in bare
    for form in forms
    for template in templates()[form]
  )


@functools.cache
def loose(template):
  """Fits what a template can say, and more, but quickly."""
  return re.compile(pattern(template, collections.defaultdict(lambda: ['.+'])))


def pattern(template, slots):
  """What a template can say with these words in its slots; 'a' may be 'an'."""
  words, *rest = re.split(r'\{(\w+)\}', template)
  found = re.escape(words)
  for slot, words in zip(rest[::2], rest[1::2]):
    found = re.sub(r'\ba\\ $', r'an?\\ ', found)
    found += f'({"|".join(slots[slot])}){re.escape(words)}'
  return found


@functools.cache
def nouns(noun):
  """All renderings of a noun, without article."""
  ways = [{*phrasings._synonyms()[word]} for word in noun.split()]
  return {' '.join(words) for words in itertools.product(*ways)}


def both(noun):
  return {
    'noun': nouns(noun),
    'nouns': {f'{said}es' if said[-1] in 'sx' else f'{said}s' for said in nouns(noun)},
  }
