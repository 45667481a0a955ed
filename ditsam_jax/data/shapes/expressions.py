"""Referring expressions for the shapes data set; each refers to exactly one object of its scene."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from ditsam_jax.data.shapes import phrasings
from ditsam_jax.data.shapes.rephrasing import OPPOSITE, new_words, parsed
from ditsam_jax.data.shapes.scenes import COLOURS, KINDS, SIZES, Shape

EXPRESSION_KINDS = ('attribute', 'relation', 'order', 'comparison', 'negation')
MAX_TOKENS = 12  # per expression, including [CLS] and [SEP]; each word is one token

# Margins, so no expression depends on a single pixel. Distances are fractions of the image side.
RELATION_MARGIN = 0.08
ORDER_MARGIN = 0.06
RADIUS_RATIO = 1.15
AREA_RATIO = 1.3

# A kind with more than this share of its scene's expressions is skipped: 'order' is nearly always possible and would
# crowd out the others.
_LARGEST_SHARE = 0.2

ORDINALS = ('first', 'second', 'third', 'fourth')
RELATIONS = (('left of', 'right of'), ('above', 'below'))  # per axis: nearer to its origin, farther from it
SIDES = (('left', 'right'), ('top', 'bottom'))
_PROPERTIES = ('size', 'colour', 'kind')
_SUBSETS = tuple(subset for n in range(4) for subset in itertools.combinations(_PROPERTIES, n))


@dataclasses.dataclass(frozen=True)
class Group:
  """All objects of a scene that match a noun."""

  noun: str  # 'small red circle', or 'red shape' without the kind
  properties: tuple[str, ...]  # mentioned by the noun
  members: list[int]

  @staticmethod
  def noun_of(size: str, colour: str, kind: str) -> str:
    """Returns a noun such as 'small red circle'; empty words are omitted."""
    return ' '.join(word for word in (size, colour, kind or 'shape') if word)


def describe(
  shapes: Sequence[Shape], side: float, per_object: int, rng: np.random.Generator
) -> list[list[tuple[str, str]]]:
  """Returns up to `per_object` different (expression, kind) pairs for each shape; `side` is the image side in px.

  Kinds are balanced over the scene as far as its objects allow.
  """
  choices = candidates(shapes, side, rng)
  chosen = [[] for _ in shapes]
  used = collections.Counter()
  for _ in range(per_object):
    # Objects with the fewest possible kinds choose first; the others balance the kinds.
    for target in sorted(range(len(shapes)), key=lambda t: sum(map(bool, choices[t].values()))):
      most = 1 + _LARGEST_SHARE * used.total()
      left = [kind for kind in EXPRESSION_KINDS if choices[target][kind] and (used[kind] < most or not chosen[target])]
      if left:
        kind = min(left, key=lambda kind: used[kind])
        chosen[target].append((choices[target][kind].pop(), kind))
        used[kind] += 1
  return chosen


def candidates(shapes: Sequence[Shape], side: float, rng: np.random.Generator) -> list[dict[str, list[str]]]:
  """Returns, for each shape, all expressions that match only it, by kind, in random order."""
  singles, crowds = groups(shapes)
  positions = [(shape.x / side, shape.y / side) for shape in shapes]
  found = {
    'attribute': [(group.members[0], f'the {group.noun}') for group in singles],
    'relation': _relations(crowds, singles, positions),
    'order': _orders(crowds, positions),
    'comparison': _comparisons(crowds, shapes),
    'negation': _negations(crowds, shapes),
  }
  choices = [{kind: [] for kind in EXPRESSION_KINDS} for _ in shapes]
  for kind, pairs in found.items():
    pairs = list(pairs)
    for i in rng.permutation(len(pairs)).tolist():
      target, text = pairs[i]
      choices[target][kind].append(text)
  return choices


def hardest_first(orders: Sequence[str]) -> list[str]:
  """Sorts all expressions of the kind 'order' about one shape by how much counting they need.

  First those in which the shape has others on both sides, then those about the last in a row, then those about the
  first. Otherwise they keep their order.
  """

  def ease(text: str) -> int:
    ordinal, noun, side = parsed(text)[1]
    if ordinal == ORDINALS[0]:
      return 2
    return int(f'the {ORDINALS[0]} {noun} from the {OPPOSITE[side]}' in orders)

  return sorted(orders, key=ease)


def groups(shapes: Sequence[Shape]) -> tuple[list[Group], list[Group]]:
  """Returns the groups with one object, and the groups with several."""
  groups = []
  for properties in _SUBSETS:
    members = collections.defaultdict(list)
    for i, shape in enumerate(shapes):
      members[tuple(getattr(shape, name) for name in properties)].append(i)
    for words, indices in members.items():
      noun = ' '.join(words if 'kind' in properties else (*words, 'shape'))
      groups.append(Group(noun, properties, indices))
  return [g for g in groups if len(g.members) == 1], [g for g in groups if len(g.members) > 1]


def _relations(
  crowds: list[Group], anchors: list[Group], positions: list[tuple[float, float]]
) -> Iterator[tuple[int, str]]:
  by_anchor = collections.defaultdict(list)
  for anchor in anchors:
    by_anchor[anchor.members[0]].append(anchor.noun)
  for crowd in crowds:
    for anchor, anchor_nouns in by_anchor.items():
      members = [i for i in crowd.members if i != anchor]
      if len(members) < 2:  # the relation would be redundant
        continue
      for axis, (nearer, farther) in enumerate(RELATIONS):
        offsets = [positions[i][axis] - positions[anchor][axis] for i in members]
        if min(map(abs, offsets)) < RELATION_MARGIN:
          continue
        for relation, fitting in (
          (nearer, [i for i, d in zip(members, offsets) if d < 0]),
          (farther, [i for i, d in zip(members, offsets) if d > 0]),
        ):
          if len(fitting) == 1:
            for noun in anchor_nouns:
              yield fitting[0], f'the {crowd.noun} {relation} the {noun}'


def _orders(crowds: list[Group], positions: list[tuple[float, float]]) -> Iterator[tuple[int, str]]:
  for crowd in crowds:
    for axis, (near_side, far_side) in enumerate(SIDES):
      along = sorted(crowd.members, key=lambda i: positions[i][axis])
      steps = [positions[b][axis] - positions[a][axis] >= ORDER_MARGIN for a, b in itertools.pairwise(along)]
      # The outermost objects have a neighbour on one side only.
      clear = [before and after for before, after in zip([True, *steps], [*steps, True])]
      for order, clear_along, side in ((along, clear, near_side), (along[::-1], clear[::-1], far_side)):
        for target, is_clear, ordinal in zip(order, clear_along, ORDINALS):
          if is_clear:
            yield target, f'the {ordinal} {crowd.noun} from the {side}'


def _comparisons(crowds: list[Group], shapes: Sequence[Shape]) -> Iterator[tuple[int, str]]:
  for crowd in crowds:
    if 'size' in crowd.properties:
      continue
    for superlative, sign in (('largest', 1), ('smallest', -1)):
      first, *others = sorted((shapes[i] for i in crowd.members), key=lambda shape: -sign * shape.radius)
      # Shapes of different kinds can be compared by extent or by area, so both must agree.
      if all(
        (first.radius / other.radius) ** sign >= RADIUS_RATIO and (first.area / other.area) ** sign >= AREA_RATIO
        for other in others
      ):
        yield shapes.index(first), f'the {superlative} {crowd.noun}'


def _negations(crowds: list[Group], shapes: Sequence[Shape]) -> Iterator[tuple[int, str]]:
  for crowd in crowds:
    for name in _PROPERTIES:
      if name in crowd.properties:
        continue
      having = collections.defaultdict(list)
      for i in crowd.members:
        having[getattr(shapes[i], name)].append(i)
      for value, members in having.items():
        rest = set(crowd.members) - set(members)
        if len(rest) == 1:
          yield rest.pop(), f'the {crowd.noun} that is not {"a " if name == "kind" else ""}{value}'


def random_chance(objects: int) -> float:
  """Returns the probability that a randomly chosen one of `objects` masks is correct."""
  return 1 / objects


def colour_candidates(expression: str, categories: Sequence[str]) -> list[int]:
  """Returns indices of the objects whose colour matches `expression`; a colour oracle must guess among them.

  `categories` are those of the records, such as 'small red circle'. The colour of a landmark ('left of the red star')
  does not count, 'that is not red' excludes red objects, and without a colour word all objects match.
  """
  target = re.split(r' (?:left of|right of|above|below) ', expression)[0]
  asked, _, excluded = target.partition(' that is not ')
  wanted, unwanted = _colours(asked), _colours(excluded)
  return [
    i
    for i, category in enumerate(categories)
    if (not wanted or wanted & _colours(category)) and not unwanted & _colours(category)
  ]


def _colours(text: str) -> set[str]:
  return set(text.split()) & set(COLOURS)


def vocabulary(*, rephrased: bool = False) -> list[str]:
  """Returns the lines of vocab.txt: the grammar's words, then characters that can spell any other word.

  With `rephrased`, the words of rephrasings follow the grammar's, and those of templates follow everything, as in the
  shipped `shapes`.
  """
  words = [
    'the',
    'shape',
    *KINDS,
    *COLOURS,
    *SIZES,
    'smallest',
    'largest',
    'left',
    'right',
    'of',
    'above',
    'below',
    *ORDINALS,
    'from',
    'top',
    'bottom',
    'that',
    'is',
    'not',
  ]
  templates = []
  if rephrased:
    words += [word for word in new_words() if word not in words and len(word) > 1]
    templates = sorted(word for word in phrasings.words() if word not in words and len(word) > 1)
  characters = [*'abcdefghijklmnopqrstuvwxyz', *'0123456789']
  pieces = [*words, *characters, *(f'##{c}' for c in characters), *".,'-?!"]
  return ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *pieces, *templates]
