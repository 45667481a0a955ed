"""Phrases that refer to any number of a scene's shapes: several ('the red circles'), one, or none.

They are not part of the records: expressions in the standard splits refer to one object each. Plurals are not in the
vocabulary; the tokenizer spells them ('circle', '##s').
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from ditsam_jax.data.shapes.expressions import (
  MAX_TOKENS,
  ORDINALS,
  RELATION_MARGIN,
  RELATIONS,
  SIDES,
  Group,
  groups,
  vocabulary,
)
from ditsam_jax.data.shapes.rephrasing import plural
from ditsam_jax.data.shapes.scenes import COLOURS, KINDS, SIZES, Shape

MOST_TARGETS = 5


@dataclasses.dataclass(frozen=True)
class Phrase:
  """A phrase and the sorted indices of all shapes that it refers to, possibly none."""

  text: str
  targets: tuple[int, ...]


def phrases(shapes: Sequence[Shape], side: float, count: int, rng: np.random.Generator) -> list[Phrase]:
  """Returns up to `count` different phrases about a scene, cycling through 0 to MOST_TARGETS targets.

  Phrases without targets are near misses: all but one of their words, or all words, match something in the scene. As in
  expressions, RELATION_MARGIN ensures that no phrase depends on a single pixel.

  Args:
    shapes: the scene's shapes, in order.
    side: side of the image in pixels.
    count: maximum number of phrases.
    rng: source of randomness.
  """
  candidates: dict[int, list[Phrase]] = {number: [] for number in range(MOST_TARGETS + 1)}
  found = [*_attributes(shapes), *_relations(shapes, side), *_absent(shapes)]
  for place in rng.permutation(len(found)).tolist():
    if len(found[place].targets) <= MOST_TARGETS and tokens(found[place].text) <= MAX_TOKENS:
      candidates[len(found[place].targets)].append(found[place])
  chosen: dict[str, Phrase] = {}
  while len(chosen) < count and any(candidates.values()):
    for number in range(MOST_TARGETS + 1):
      if candidates[number] and len(chosen) < count:
        phrase = candidates[number].pop()
        chosen[phrase.text] = phrase
  return list(chosen.values())


def absent_phrases(shapes: Sequence[Shape], side: float, count: int, rng: np.random.Generator) -> list[Phrase]:
  """Returns up to `count` different phrases that name nothing in a scene, of three kinds in turn.

  Attributes that no shape combines, positions past the end of a row ('the fourth red circle' of three), and relations
  that nothing has.

  Args:
    shapes: the scene's shapes, in order.
    side: side of the image in pixels.
    count: maximum number of phrases.
    rng: source of randomness.
  """
  kinds = [
    list(_absent(shapes)),
    list(_past_the_end(shapes)),
    [phrase for phrase in _relations(shapes, side) if not phrase.targets],
  ]
  shuffled = [[found[place] for place in rng.permutation(len(found)).tolist()] for found in kinds]
  first = int(rng.integers(len(shuffled)))
  turns = itertools.chain.from_iterable(itertools.zip_longest(*shuffled[first:], *shuffled[:first]))
  fitting = (phrase for phrase in dict.fromkeys(turns) if phrase and tokens(phrase.text) <= MAX_TOKENS)
  return list(itertools.islice(fitting, count))


def tokens(text: str, *, rephrased: bool = False) -> int:
  """Counts the tokens of a text, including [CLS] and [SEP], in the vocabulary with or without the words of rephrasings.

  Plural endings take one token per letter.
  """
  known = _known(rephrased)
  beginnings = (next(word[:end] for end in range(len(word), 0, -1) if word[:end] in known) for word in text.split())
  return 2 + sum(1 + len(word) - len(beginning) for word, beginning in zip(text.split(), beginnings))


@functools.cache
def _known(rephrased: bool) -> frozenset[str]:
  return frozenset(vocabulary(rephrased=rephrased))


def _attributes(shapes: Sequence[Shape]) -> Iterator[Phrase]:
  singles, crowds = groups(shapes)
  for group in singles:
    yield Phrase(f'the {group.noun}', tuple(group.members))
  for group in crowds:
    yield Phrase(f'the {plural(group.noun)}', tuple(group.members))


def _relations(shapes: Sequence[Shape], side: float) -> Iterator[Phrase]:
  singles, crowds = groups(shapes)
  positions = [(shape.x / side, shape.y / side) for shape in shapes]
  for anchor, crowd in itertools.product(singles, [*singles, *crowds]):
    place = anchor.members[0]
    members = [i for i in crowd.members if i != place]
    for axis, words in enumerate(RELATIONS):
      offsets = {i: positions[i][axis] - positions[place][axis] for i in members}
      if not offsets or min(map(abs, offsets.values())) < RELATION_MARGIN:
        continue
      for word, sign in zip(words, (-1, 1)):
        targets = tuple(i for i in members if sign * offsets[i] > 0)
        noun = crowd.noun if len(targets) == 1 or len(crowd.members) == 1 else plural(crowd.noun)
        yield Phrase(f'the {noun} {word} the {anchor.noun}', targets)


def _past_the_end(shapes: Sequence[Shape]) -> Iterator[Phrase]:
  for group in itertools.chain.from_iterable(groups(shapes)):
    for ordinal in ORDINALS[len(group.members) :]:
      for side in itertools.chain.from_iterable(SIDES):
        yield Phrase(f'the {ordinal} {group.noun} from the {side}', ())


def _absent(shapes: Sequence[Shape]) -> Iterator[Phrase]:
  """Yields phrases with a combination of size, colour and kind that no shape has, but some shape nearly has."""
  for size, colour, kind in itertools.product(('', *SIZES), ('', *COLOURS), ('', *KINDS)):
    wanted = {name: word for name, word in (('size', size), ('colour', colour), ('kind', kind)) if word}
    fitting = [sum(getattr(shape, name) == word for name, word in wanted.items()) for shape in shapes]
    if len(wanted) < 2 or max(fitting) != len(wanted) - 1:
      continue
    noun = Group.noun_of(size, colour, kind)
    yield Phrase(f'the {noun}', ())
    yield Phrase(f'the {plural(noun)}', ())
