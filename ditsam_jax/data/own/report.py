"""Statistics and warnings about a user's own data set, collected image by image."""

import array
import collections
import math
from collections.abc import Iterable

import numpy as np

from ditsam_jax.data.own.entries import Context
from ditsam_jax.data.own.plan import Named, Plan
from ditsam_jax.data.preparation.images import NEARLY_EQUAL, EncodedImage, PlannedObject
from ditsam_jax.terminal import listed, printable
from ditsam_jax.tokenization import Tokenizer, words_of

_EXAMPLES = 3
_NEEDED = {'train': 'training', 'val': 'evaluation during training'}


class Report:
  """Observes every image of a data set once, then reports."""

  def __init__(self, plan: Plan, context: Context, tokenizer: Tokenizer, model: str):
    """Starts a report; `model` is the name of the model that `tokenizer` belongs to."""
    self._names, self._context = plan.names, context
    self._tokenizer, self._model = tokenizer, model
    self._images = 0
    self._smallest = self._largest = (0, 0)  # height and width
    self._shares = array.array('d')  # share of the image that each mask covers, 0 for empty masks
    self._lengths = array.array('l')  # of sentences, in words
    self._sentences: set[int] = set()  # hashes of unique sentences
    self._splits: dict[str, None] = {}
    self._words: set[str] = set()
    self._places: dict[bytes, dict[tuple[str, int], str]] = {}  # by content: a file name by split and image id
    self._nothing = 0
    self._examples: dict[str, list[str]] = collections.defaultdict(list)
    self._counts: collections.Counter[str] = collections.Counter()
    self._lacking: collections.Counter[str] = collections.Counter()

  def observe(self, split: str, encoded: EncodedImage) -> None:
    """Adds one image with its objects."""
    objects = [one for one, _ in encoded.objects]
    name = self._named(objects[0]).image
    self._splits[split] = None
    self._places.setdefault(encoded.digest, {})[split, encoded.planned.image_id] = name
    size = encoded.height, encoded.width
    self._smallest = min(self._smallest if self._images else size, size, key=math.prod)
    self._largest = max(self._largest, size, key=math.prod)
    self._images += 1
    if encoded.orientation_unsure:
      self._note('turned', self._called(objects[0]))
    for one, area in zip(objects, encoded.areas):
      self._shares.append(area / math.prod(size))
      if not one.masks:
        self._nothing += 1
      elif not area:
        self._note('empty', self._called(one))
      elif area == math.prod(size):
        self._note('full', self._called(one))
      for text in one.expressions:
        self._read(text, one)
    for first, second in encoded.alike:
      self._note('alike', f'{self._called(objects[first])} and {self._place(objects[second])}')
    meant: dict[str, int] = {}
    for index, (one, png) in enumerate(encoded.objects):
      for text in {' '.join(words_of(text)) for text in one.expressions}:
        other = meant.setdefault(text, index)
        if encoded.objects[other][1] != png:
          self._note('ambiguous', f"'{printable(text, 60)}' in {self._called(objects[other])} and {self._place(one)}")

  def lines(self) -> list[str]:
    """Returns the report, line by line: statistics, warnings, notes; no lines without images."""
    if not self._images:
      return []
    return [*self._figures(), *(f'warning: {line}' for line in self._warnings()), *self._notes()]

  def _read(self, text: str, one: PlannedObject) -> None:
    words = words_of(text)
    self._lengths.append(len(words))
    self._sentences.add(hash(text))
    self._words.update(words)
    if unknown := self._tokenizer.unknown(text):
      self._counts['unknown'] += 1
      self._lacking.update(list(dict.fromkeys(word.lower() for word in unknown)))  # in order, once per sentence
    if cut := self._tokenizer.cut(text):
      self._note('cut', f"{self._called(one)} ('{printable(cut, 60)}')")

  def _figures(self) -> Iterable[str]:
    least, most = (f'{width} x {height}' for height, width in (self._smallest, self._largest))
    yield f'images: {self._images:,}, {f"from {least} to {most}" if least != most else f"all {least}"} pixels'
    shares = 100 * np.array(self._shares)
    given = shares[shares > 0]
    nothing = f'; no target (null): {self._nothing:,}' if self._nothing else ''
    yield f'masks: {_range(given, "% of the image") if given.size else "none"}{nothing}'
    different = len(self._sentences)
    yield f'sentences: {len(self._lengths):,}, {different:,} different, {_range(np.array(self._lengths), "words")}'
    model = f"'{printable(self._model)}'"
    yield f'sentences cut at the {self._tokenizer.max_tokens} tokens of {model}: {self._counted("cut")}'
    common = ', '.join(f'{printable(word, 40)} ({number:,})' for word, number in self._lacking.most_common(10))
    more = len(self._lacking) - 10
    lacking = f': {common}{f" and {more:,} more" if more > 0 else ""}' if common else ''
    yield (
      f'words missing from the vocabulary of {model}: {len(self._lacking):,} of {len(self._words):,}, in '
      f'{self._counts["unknown"]:,} sentences{lacking}'
    )

  def _warnings(self) -> Iterable[str]:
    yield from self._leaks()
    for kind, title in (
      ('turned', 'images with EXIF orientation whose annotated size fits them rotated and unrotated; rotated here'),
      ('empty', 'empty masks, treated as no target (null)'),
      ('full', 'masks that cover the whole image'),
      ('alike', f'pairs of nearly equal masks (IoU {NEARLY_EQUAL} or more) with different sentences'),
      ('ambiguous', 'sentences used for different masks of one image'),
    ):
      if self._counts[kind]:
        yield f'{title}: {self._counted(kind)}'
    for split, use in _NEEDED.items():
      if split not in self._splits:
        yield f"no split '{split}', required for {use}; found: {listed(self._splits)}"

  def _leaks(self) -> Iterable[str]:
    """Yields warnings about images that occur in several splits or several times."""
    copies = 0
    for places in self._places.values():
      several = sorted({split for split, _ in places})
      if len(several) > 1:
        self._note('leaks', f'{listed(dict.fromkeys(places.values()), 2)} in {listed(several)}')
      copies += len({image for _, image in places}) > 1
    if self._counts['leaks']:
      yield f'identical images in several splits, so evaluation may see training images: {self._counted("leaks")}'
    if copies:
      yield f'identical images under different names: {copies:,}'

  def _notes(self) -> Iterable[str]:
    if self._context.ignored:
      fields = listed(f'{printable(name, 40)} ({number:,})' for name, number in self._context.ignored.items())
      yield f'note: unknown fields: {fields}'

  def _note(self, kind: str, example: str) -> None:
    self._counts[kind] += 1
    if len(self._examples[kind]) < _EXAMPLES:
      self._examples[kind].append(example)

  def _counted(self, kind: str) -> str:
    """Returns the count and the first examples: '12 (a; b; c; ...)'."""
    examples, number = self._examples[kind], self._counts[kind]
    if not examples:
      return f'{number:,}'
    return f'{number:,} ({"; ".join(examples)}{"; ..." if number > len(examples) else ""})'

  def _named(self, one: PlannedObject) -> Named:
    return self._names[one.object_id]

  def _place(self, one: PlannedObject) -> str:
    return printable(self._named(one).place, 80)

  def _called(self, one: PlannedObject) -> str:
    return f'{self._place(one)} ({printable(self._named(one).image, 80)})'


def _range(values: np.ndarray, unit: str) -> str:
  """Returns a range such as '1 to 9 words (median 4)'."""
  low, middle, high = np.quantile(values, (0, 0.5, 1))
  if low == high:
    return f'{low:.3g} {unit}'
  return f'{low:.3g} to {high:.3g} {unit} (median {middle:.3g})'
