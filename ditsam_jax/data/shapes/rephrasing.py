"""Rephrases expressions and phrases about shapes in words that people might type.

'the second red circle from the left' becomes 'crimson disc number two from the left', or 'from the left, the second
disc that is red'. Only training data is rephrased; the standard splits keep the grammar's words.
"""

import re

import numpy as np

from ditsam_jax.data.shapes.scenes import COLOURS, KINDS, SIZES

LONGEST = 16  # tokens of a rephrased text in the training data, including [CLS] and [SEP]

# The first word of each tuple is the grammar's.
SYNONYMS = {
  'red': ('red', 'crimson', 'scarlet'),
  'green': ('green', 'emerald'),
  'blue': ('blue', 'azure'),
  'yellow': ('yellow', 'golden'),
  'purple': ('purple', 'violet'),
  'orange': ('orange', 'tangerine'),
  'circle': ('circle', 'disc', 'disk', 'dot', 'ball'),
  'square': ('square', 'box', 'block'),
  'triangle': ('triangle',),
  'star': ('star',),
  'cross': ('cross', 'plus', 'plus sign'),
  'shape': ('shape', 'object', 'thing', 'figure', 'item', 'one'),
  'small': ('small', 'little', 'tiny'),
  'large': ('large', 'big', 'huge'),
  'largest': ('largest', 'biggest'),
  'smallest': ('smallest', 'tiniest', 'littlest'),
  'left of': ('left of', 'to the left of', 'on the left of', 'on the left side of'),
  'right of': ('right of', 'to the right of', 'on the right of', 'on the right side of'),
  'above': ('above', 'over', 'higher than'),
  'below': ('below', 'under', 'beneath', 'underneath', 'lower than'),
}
_OUTERMOST = {
  'left': ('leftmost', 'furthest left', 'farthest left'),
  'right': ('rightmost', 'furthest right', 'farthest right'),
  'top': ('topmost', 'highest', 'uppermost'),
  'bottom': ('bottommost', 'lowest'),
}
_ONE_WORD = {side: [word for word in words if ' ' not in word] for side, words in _OUTERMOST.items()}
_ACROSS = ('left', 'right')
OPPOSITE = {'left': 'right', 'right': 'left', 'top': 'bottom', 'bottom': 'top'}
NUMBERS = {'first': 'one', 'second': 'two', 'third': 'three', 'fourth': 'four'}
_SHADES = [shade for colour in COLOURS for shade in SYNONYMS[colour]]
_WISHES = ('find', 'select', 'show me', 'please select', 'segment', 'where is', 'i want', 'mark')
_EVERY_WISH = ('find', 'select', 'show me', 'segment', 'mark')
_NEGATIONS = ('that is not', 'which is not', 'not', "that isn't", "which isn't", 'but not', 'and not', 'but it is not')

_NOUN = r'(?:(?:{}) )*(?:{})(?:e?s)?'.format(
  '|'.join([*SIZES, *COLOURS]), '|'.join([*(kind + '(?=e?s?\\b)' for kind in KINDS), 'shape'])
)
_PATTERNS = {
  'relation': re.compile(rf'the ({_NOUN}) (left of|right of|above|below) the ({_NOUN})'),
  'order': re.compile(rf'the (first|second|third|fourth) ({_NOUN}) from the (left|right|top|bottom)'),
  'comparison': re.compile(rf'the (largest|smallest) ({_NOUN})'),
  'negation': re.compile(rf'the ({_NOUN}) that is not (?:a )?(\w+)'),
  'plain': re.compile(rf'the ({_NOUN})'),
}


def rephrase(text: str, rng: np.random.Generator) -> str:
  """Says an expression or phrase of the grammar in other words, drawn from `rng`; it refers to the same shapes.

  Raises:
    ValueError: the grammar has no such text.
  """
  say = _Speaker(rng)
  form, words = parsed(text)
  ways = {
    'relation': say.relation,
    'order': say.order,
    'comparison': say.comparison,
    'negation': say.negation,
    'plain': say.thing,
  }
  said = ways[form](*words)
  return say.wish(said, is_plural(words[0]))


def parsed(text: str) -> tuple[str, tuple[str, ...]]:
  """Returns the form of a text of the grammar and its words.

  They are ('relation', (target, relation, anchor)), ('order', (ordinal, noun, side)), ('comparison', (superlative,
  noun)), ('negation', (noun, value)) or ('plain', (noun,)).

  Raises:
    ValueError: the grammar has no such text.
  """
  for form, pattern in _PATTERNS.items():
    if match := pattern.fullmatch(text):
      return form, match.groups()
  raise ValueError(f'{text!r} is not an expression about shapes')


def plural(noun: str) -> str:
  """Returns the plural: 'small red circle' -> 'small red circles'."""
  return f'{noun}es' if noun.endswith(('s', 'x')) else f'{noun}s'


def is_plural(noun: str) -> bool:
  return noun.endswith('s') and not noun.endswith('cross')


class _Speaker:
  """Chooses words."""

  def __init__(self, rng: np.random.Generator):
    self._rng = rng

  def relation(self, target: str, relation: str, anchor: str) -> str:
    where = f'{self._other(relation)} {self.thing(anchor, article=0.8)}'
    if self._happens(0.2):
      return f'{where}, {self.thing(target)}'
    links = (' that are', ' which are', ',') if is_plural(target) else (' that is', ' which is', ',', ', it is')
    link = self._one_of('', '', '', '', *links)
    return f'{self.thing(target)}{link} {where}'

  def order(self, ordinal: str, noun: str, side: str) -> str:
    if ordinal == 'first' and self._happens(0.7):
      return self._outermost(noun, side)
    start = self._one_of(
      f'from the {side}',
      f'from the {side}',
      f'from {side}',
      f'{self._one_of("counting", "starting")} from the {side}',
      f'{self._one_of("", "from ")}{side} to {OPPOSITE[side]}',
    )
    choices = [
      f'{self._article()}{ordinal} {self.words(noun)} {start}',
      f'{self._article()}{ordinal} {self.words(noun)} {start}',
      f'{self._article()}{self.words(noun)} number {NUMBERS[ordinal]} {start}',
      f'{start}, the {ordinal} {self.words(noun)}',
      f'{ordinal} {start}, {self.words(noun)}',
      f'{self.words(noun)}, {self._one_of("", "the ")}{ordinal} {self._one_of("", "one ")}{start}',
      f'{ordinal} of the {self.words(plural(noun))} {start}',
      f'{self.thing(noun)} that is {ordinal} {start}',
      f'of the {self.words(plural(noun))}, the {ordinal} {self._one_of("", "one ")}{start}',
    ]
    if ordinal != 'first':
      choices.append(f'{self._article()}{ordinal} {self._one_of(*_ONE_WORD[side])} {self.words(noun)}')
    return self._one_of(*choices)

  def _outermost(self, noun: str, side: str) -> str:
    outermost, word = self._one_of(*_OUTERMOST[side]), self._one_of(*_ONE_WORD[side])
    if self._happens(0.25):
      ends = ('on the far', 'on the') if side in _ACROSS else ('at the very', 'at the')
      return f'{self.thing(noun)} {self._one_of(*ends)} {side}'
    if ' ' in outermost or self._happens(0.15):
      return self._one_of(
        f'{self.thing(noun)} {outermost}',
        f'the {outermost} {self.words(noun)}',
        f'{self.thing(noun)} that is {outermost}',
      )
    return self._one_of(
      f'{self._article()}{word} {self.words(noun)}',
      f'{self._article()}{word} {self.words(noun)}',
      f'{self._article()}{word} of the {self.words(plural(noun))}',
      f'{self.words(noun)}, the {word} one',
    )

  def comparison(self, superlative: str, noun: str) -> str:
    superlative = self._other(superlative)
    return self._one_of(
      f'{self._article()}{superlative} {self.words(noun)}',
      f'{self._article()}{superlative} {self.words(noun)}',
      f'{self._article()}{superlative} of {self._one_of("the", "all", "all the")} {self.words(plural(noun))}',
      f'of {self._one_of("the", "all", "all the")} {self.words(plural(noun))}, the {superlative}',
      f'{self._article()}{superlative} {self.thing(noun, article=0)}',
      f'{self.thing(noun)} with the {superlative} size',
      f'{self.thing(noun)} {self._one_of("that is", "which is")} {superlative}',
      f'{self.words(noun)}, the {superlative}{self._one_of("", " one", " of all")}',
    )

  def negation(self, noun: str, value: str) -> str:
    said = self._other(value)
    if value in KINDS:
      unwanted = self._one_of(said, f'a {said}', f'a {said}', f'the {said}')
    else:
      unwanted = self._one_of(said, said, said, f'a {said} one', f'the {said} one')
    if self._happens(0.15):
      return f'{self.thing(noun)}, anything but {unwanted}'
    if value in KINDS and self._happens(0.2):
      return f'{self.thing(noun)} {self._one_of("that is", "but", "and")} no {said}'
    if value in COLOURS and self._happens(0.15):
      return f'{self.thing(noun)} in another colour than {said}'
    negation = self._one_of(*_NEGATIONS)
    thing = self.thing(noun)
    comma = self._one_of('', ',') if negation.startswith(('not', 'but')) else ''
    return f'{thing}{comma} {negation} {unwanted}'

  def thing(self, noun: str, article: float = 0.6) -> str:
    """A noun with or without article, its adjectives before or behind it."""
    *adjectives, kind = noun.split()
    kind = self._kind(kind)
    adjectives = [self._other(word) for word in adjectives]
    if len(adjectives) == 2 and self._happens(0.1):
      return f'{self._article()}{kind} that {"are" if is_plural(noun) else "is"} {adjectives[0]} and {adjectives[1]}'
    the = 'the ' if self._happens(article) else ''
    if adjectives and self._happens(0.2):
      behind = adjectives.pop(0 if self._happens(0.5) else -1)
      links = [' that are', ' which are', ','] if is_plural(noun) else [' that is', ' which is', ',']
      if behind in _SHADES:
        links += [' in', ' coloured']
        if self._happens(0.1):
          behind, links = f'{behind} colour', [' of', ' with the']
      link = self._one_of(*links)
      return f'{the}{" ".join([*adjectives, kind])}{link} {behind}'
    if len(adjectives) == 2 and self._happens(0.3):
      adjectives.reverse()
    return f'{the}{" ".join([*adjectives, kind])}'

  def words(self, noun: str) -> str:
    """A noun without article, its adjectives before it, in any order."""
    *adjectives, kind = noun.split()
    adjectives = [self._other(word) for word in adjectives]
    if len(adjectives) == 2 and self._happens(0.3):
      adjectives.reverse()
    return ' '.join([*adjectives, self._kind(kind)])

  def wish(self, said: str, plural: bool) -> str:
    if not self._happens(0.12):
      return said
    wish = self._one_of(*(_EVERY_WISH if plural else _WISHES))
    if plural and self._happens(0.3):
      return f'{wish} all {said}'
    return f'{wish} {said}'

  def _kind(self, word: str) -> str:
    single = re.sub(r'(?<=shape|quare|ircle|angle)s$|(?<=star)s$|(?<=cross)es$', '', word)
    said = self._other(single)
    return said if single == word else plural(said)

  def _other(self, word: str) -> str:
    """The word itself half of the time, otherwise a synonym."""
    own, *others = SYNONYMS[word]
    return self._one_of(*others) if others and self._happens(0.5) else own

  def _article(self) -> str:
    return 'the ' if self._happens(0.6) else ''

  def _happens(self, share: float) -> bool:
    return bool(self._rng.random() < share)

  def _one_of(self, *choices: str) -> str:
    return choices[self._rng.integers(len(choices))]


def new_words() -> list[str]:
  """Returns the words of all rephrasings that the grammar does not have, sorted."""
  texts = [
    *(text for texts in (*SYNONYMS.values(), *_OUTERMOST.values()) for text in texts),
    *_WISHES,
    *_EVERY_WISH,
    *_NEGATIONS,
    *NUMBERS.values(),
    'on the far at the very from counting number that are which in all to starting and '
    'coloured colour with no size an any anything another it',
  ]
  grammar = {*SYNONYMS, *(word for key in SYNONYMS for word in key.split())}
  return sorted({word for text in texts for word in re.findall('[a-z]+', text)} - grammar)
