"""Says expressions about shapes with the templates of phrasings.tsv, collected from several writers.

A line is a form and a template: 'order<TAB>counting from the {side}, {noun} number {number}'. The form says what the
template means; FORMS says which slots it has. A line of the form 'synonym' is 'word=other word'. Like `rephrasing`,
templates serve training data only.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ditsam_jax.data.shapes.rephrasing import NUMBERS, OPPOSITE, SYNONYMS, is_plural, parsed, plural
from ditsam_jax.data.shapes.scenes import COLOURS, SIZES

_NOUNS = ('noun', 'nouns')
_NUMBERS = ('ordinal', 'number', 'rank')
# Slots of each form's templates. Of the slots in a tuple, a template has at least one.
FORMS: Mapping[str, tuple[str | tuple[str, ...], ...]] = {
  'relation_side': ('target', 'anchor', 'side'),
  'relation_opposite': ('target', 'anchor', 'opposite'),  # where the anchor is, seen from the target
  'relation_above': ('target', 'anchor'),
  'relation_below': ('target', 'anchor'),
  'order': (_NUMBERS, _NOUNS, 'side'),  # and perhaps the opposite side, where counting ends
  'outermost_across': (_NOUNS, 'side'),
  'outermost_top': (_NOUNS,),
  'outermost_bottom': (_NOUNS,),
  'largest': (_NOUNS,),
  'smallest': (_NOUNS,),
  'not_colour': (_NOUNS, 'value'),
  'not_size': (_NOUNS, 'value'),
  'not_kind': (_NOUNS, 'value'),
  'coloured': ('kind', 'colour'),
  'sized': ('kind', 'size'),
  'ask': ('said',),
}
_RANKS = {'first': '1st', 'second': '2nd', 'third': '3rd', 'fourth': '4th'}
_OUTERMOST_SHARE = 0.7  # of what comes first, the rest is said with a number
_ASKED_SHARE = 0.15


def from_template(text: str, rng: np.random.Generator) -> str | None:
  """Says an expression of the grammar as a random template does; it refers to the same shape.

  Returns:
    None if no template fits: for plurals, and for a kind alone ('the star').

  Raises:
    ValueError: the grammar has no such text.
  """
  form, words = parsed(text)
  if is_plural(words[0]):
    return None
  fill = _Filler(rng)
  said = {
    'relation': fill.relation,
    'order': fill.order,
    'comparison': fill.comparison,
    'negation': fill.negation,
    'plain': fill.plain,
  }[form](*words)
  if said and rng.random() < _ASKED_SHARE:
    said = fill.template('ask', said=said)
  return said and re.sub(r'\ba (?=[aeiou])', 'an ', said)


class _Filler:
  """Chooses templates and words."""

  def __init__(self, rng: np.random.Generator):
    self._rng = rng

  def relation(self, target: str, relation: str, anchor: str) -> str:
    nouns = {'target': self.noun(target), 'anchor': self.noun(anchor)}
    if relation in ('above', 'below'):
      return self.template(f'relation_{relation}', **nouns)
    side = relation.removesuffix(' of')
    return self.template('relation_side', 'relation_opposite', side=side, opposite=OPPOSITE[side], **nouns)

  def order(self, ordinal: str, noun: str, side: str) -> str:
    if ordinal == 'first' and self._rng.random() < _OUTERMOST_SHARE:
      form = f'outermost_{side}' if side in ('top', 'bottom') else 'outermost_across'
      return self.template(form, **self._both(noun), side=side)
    numbers = {'ordinal': ordinal, 'number': NUMBERS[ordinal], 'rank': _RANKS[ordinal]}
    return self.template('order', **self._both(noun), **numbers, side=side, opposite=OPPOSITE[side])

  def comparison(self, superlative: str, noun: str) -> str:
    return self.template(superlative, **self._both(noun))

  def negation(self, noun: str, value: str) -> str:
    form = 'not_colour' if value in COLOURS else 'not_size' if value in SIZES else 'not_kind'
    return self.template(form, **self._both(noun), value=self._one_of(_synonyms()[value]))

  def plain(self, noun: str) -> str | None:
    words = noun.split()
    for form, slot, values in (('coloured', 'colour', COLOURS), ('sized', 'size', SIZES)):
      for value in words:
        if value in values:
          kind = self.noun(' '.join(word for word in words if word != value))
          return self.template(form, **{'kind': kind, slot: self._one_of(_synonyms()[value])})
    return None

  def noun(self, noun: str) -> str:
    """A noun with synonyms, without article."""
    return ' '.join(self._one_of(_synonyms()[word]) for word in noun.split())

  def template(self, *forms: str, **slots: str) -> str:
    """Fills a template that one of the forms has; all are equally likely."""
    return self._one_of([template for form in forms for template in templates()[form]]).format_map(slots)

  def _both(self, noun: str) -> dict[str, str]:
    return {'noun': self.noun(noun), 'nouns': plural(self.noun(noun))}

  def _one_of(self, choices: Sequence[str]) -> str:
    return choices[int(self._rng.integers(len(choices)))]


@functools.cache
def templates() -> dict[str, list[str]]:
  """Returns the templates of each form, without the synonyms."""
  return {form: [text for name, text in _lines() if name == form] for form in FORMS}


@functools.cache
def _synonyms() -> dict[str, list[str]]:
  """Returns, for each word, what it can be called. Half are the word itself."""
  others = {word: [*ways[1:]] for word, ways in SYNONYMS.items()}
  for name, text in _lines():
    if name == 'synonym':
      word, other = text.split('=')
      others[word].append(other)
  return {word: [word] * max(len(ways), 1) + ways for word, ways in others.items()}


@functools.cache
def _lines() -> list[tuple[str, str]]:
  lines = Path(__file__).with_name('phrasings.tsv').read_text(encoding='utf-8').splitlines()
  return [(form, text) for form, text in (line.split('\t') for line in lines)]


@functools.cache
def words() -> frozenset[str]:
  """Returns all words of templates and synonyms."""
  said = [re.sub(r'\{\w+\}', '', text) for _, text in _lines()]
  return frozenset(re.findall('[a-z0-9]+', ' '.join([*said, *NUMBERS.values(), *_RANKS.values()])))
