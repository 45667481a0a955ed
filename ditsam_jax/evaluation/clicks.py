"""Corrections by clicks: the masks of a sentence and of each further click where the last mask was wrong.

Clicks are deterministic, as in the literature on interactive segmentation: each falls on the deepest point of the
largest error, the pixel farthest from the error's edge, among pixels that were missed (a positive click) or wrongly
included (a negative one). The mask before the click is part of the prompt. For comparison, the same clicks are made
without the sentence, starting from nothing; their first mask is the best of three, as one click may be ambiguous.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np

from ditsam_jax.data.evaluation_batches import pairs_of
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.click_results import ClickResults, ClickScore
from ditsam_jax.evaluation.results import Sample
from ditsam_jax.inference.engine import Square
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.results import Prediction
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.parallel import distributed
from ditsam_jax.terminal import progress as bar_of

_AT_ONCE = 64  # samples corrected together; fewer if their images are large
_MOST_PIXELS = 2**28  # of the masks of samples corrected together; about 7 bytes each

Offer = Callable[[Sample, np.ndarray, list[Prediction], list[float]], Any]


class _Pair(NamedTuple):
  """A sample with a target, and its image."""

  sample: Sample
  framed: Framed
  truth: np.ndarray  # bool [h, w]


def evaluate_clicks(
  segmenter: Segmenter,
  source: ReferringSource,
  clicks: int,
  *,
  limit: int | None = None,
  offer: Offer = lambda *_: None,
) -> ClickResults:
  """Corrects the mask of each (object, expression) pair of a split with clicks. Hosts share the work; all return all.

  Pairs without a target are left out, because there is nothing to click. Masks are compared at the image's own size.

  Args:
    segmenter: the model and its tokenizer.
    source: the split.
    clicks: corrections per sample, at least 1.
    limit: evaluate this many pairs, evenly spread, instead of all.
    offer: called with each sample of this host, its truth bool [h, w], the predictions for the sentence and after each
      click, and their IoU (0 to 1).

  Raises:
    UserError: no pair has a target.
  """
  host, hosts = distributed.place()
  pairs = pairs_of(source, limit)
  mine = pairs[host * len(pairs) // hosts : (host + 1) * len(pairs) // hosts]
  scores = []
  with bar_of(len(mine), f'clicking on {source.split}', 'samples', shown=host == 0, leave=False) as bar:
    for start in range(0, len(mine), _AT_ONCE):
      some = mine[start : start + _AT_ONCE]
      for together in _together(_read(segmenter, source, some), clicks):
        by_sentence = _corrected(segmenter, together, clicks, with_text=True)
        by_clicks = _corrected(segmenter, together, clicks, with_text=False)
        for pair, spoken, silent in zip(together, by_sentence, by_clicks):
          scores.append(ClickScore(pair.sample, spoken.overlaps, silent.overlaps))
          offer(pair.sample, pair.truth, spoken.predictions, [i / max(u, 1) for i, u in spoken.overlaps])
      bar.update(len(some))
  found = distributed.gathered(scores)
  if not found:
    raise UserError(f'split {source.split!r} of {source.directory} has no expression with a target to click on')
  return ClickResults.of(found, clicks)


def deepest_error(mask: np.ndarray, truth: np.ndarray, clicked: list[tuple[int, int]]) -> tuple[int, int, int] | None:
  """The pixel of the next click.

  Args:
    mask: predicted, bool [h, w].
    truth: bool [h, w].
    clicked: pixels (x, y) of earlier clicks, which are not clicked again.

  Returns:
    (x, y, label), label 1 for a missed pixel and 0 for a wrongly included one; None if no pixel is wrong.
  """
  depths = []
  for error in (mask & ~truth, truth & ~mask):  # by label
    depth = cv2.distanceTransform(np.pad(error, 1).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    for x, y in clicked:
      depth[y, x] = 0
    depths.append(depth)
  label = int(depths[1].max() >= depths[0].max())
  y, x = divmod(int(depths[label].argmax()), mask.shape[1])
  return (x, y, label) if depths[label][y, x] else None


def _read(segmenter: Segmenter, source: ReferringSource, pairs: list[tuple[int, int, int]]) -> Iterator[_Pair]:
  """Reads the pairs (position, object, expression) that have a target."""
  for image, group in itertools.groupby(pairs, lambda pair: source.place(pair[1])[0]):
    record = source.image(image)
    framed = frame(record.image(), segmenter.config)
    for position, index, which in group:
      place = source.place(index)[1]
      truth = record.mask(place)
      if truth.any():
        sample = Sample(
          position,
          record.image_id,
          record.object_ids[place],
          record.kinds(place)[which],
          record.expressions(place)[which],
          int(np.count_nonzero(truth)),
          truth.size,
        )
        yield _Pair(sample, framed, truth)


def _together(pairs: Iterable[_Pair], clicks: int) -> Iterator[list[_Pair]]:
  """Groups pairs to be corrected together, so that their masks have at most _MOST_PIXELS, or one pair alone."""
  some, pixels = [], 0
  for pair in pairs:
    more = 2 * (1 + clicks) * pair.truth.size  # with and without the sentence
    if some and pixels + more > _MOST_PIXELS:
      yield some
      some, pixels = [], 0
    some.append(pair)
    pixels += more
  if some:
    yield some


class _Course:
  """The corrections of one sample."""

  def __init__(self, pair: _Pair, framed: Framed, text: str | None):
    self.framed, self.text = framed, text
    self.predictions: list[Prediction] = []
    self.overlaps: list[tuple[int, int]] = []
    self._truth = pair.truth
    self._clicks: list[tuple[int, int, int]] = []

  def click(self) -> bool:
    """Adds a click; returns False if no pixel is wrong, and repeats the last mask."""
    mask = self.predictions[-1].mask if self.predictions else np.zeros_like(self._truth)
    click = deepest_error(mask, self._truth, [(x, y) for x, y, _ in self._clicks])
    if click is None:
      self.predictions.append(self.predictions[-1])
      self.overlaps.append(self.overlaps[-1])
      return False
    self._clicks.append(click)
    return True

  def prompt(self) -> Prompt:
    if not self._clicks:
      return Prompt(self.text)
    last = self.predictions[-1] if self.predictions else None
    return Prompt(
      self.text,
      points=[click[:2] for click in self._clicks],
      labels=[click[2] for click in self._clicks],
      mask=None if last is None else last.low_res_logits[last.best],
      multimask=last is None,
    )

  def add(self, prediction: Prediction) -> None:
    self.predictions.append(prediction)
    mask = prediction.mask
    self.overlaps.append((int(np.count_nonzero(mask & self._truth)), int(np.count_nonzero(mask | self._truth))))


def _corrected(segmenter: Segmenter, pairs: list[_Pair], clicks: int, *, with_text: bool) -> list[_Course]:
  # Each sentence gets a cache of its own if it enters the image encoder; otherwise an image is encoded once.
  own = with_text and segmenter.config.encodes_text_with_image
  courses = [
    _Course(pair, _copy(pair.framed) if own else pair.framed, pair.sample.expression if with_text else None)
    for pair in pairs
  ]
  for number in range(0 if with_text else 1, clicks + 1):
    asked = [course for course in courses if number == 0 or course.click()]
    batch = [(course.framed, segmenter.prompt(course.prompt())) for course in asked]
    for course, result in zip(asked, segmenter.begin(batch, segmenter.batch_size)):
      course.add(result())
  return courses


def _copy(framed: Framed) -> Framed:
  return Framed(framed.image, Square(framed.square.pixels), framed.box, framed.config)
