"""Points, boxes, masks and sentences given in Python, drawn by hypothesis, to both ways of predicting."""

import functools
import random
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.sam_predictor import SamPredictor
from ditsam_jax.inference.segmenter import Segmenter
from tests.fuzz.mutations import NUMBERS, VALUES
from tests.fuzz.outcomes import ACCEPTED, PARTLY, REFUSED, Violation, attempt, check_numbers
from tests.fuzz.seeds import picture, save_sam, save_text_model
from tests.fuzz.sentences import quiet

_FINITE = st.floats(-100, 200, width=32)
_NUMBER = st.one_of(_FINITE, _FINITE, _FINITE, st.sampled_from(NUMBERS), st.sampled_from(VALUES))
_PAIR = st.lists(_FINITE, min_size=2, max_size=2)
_POINTS = st.one_of(
  st.none(),
  st.lists(_PAIR, min_size=1, max_size=20),
  st.lists(_PAIR, min_size=1, max_size=3).map(np.array),
  st.lists(st.lists(_NUMBER, min_size=1, max_size=3), max_size=4),
  st.sampled_from([8, 9, 1000, 1001, 10**5]).map(lambda n: np.ones((n, 2))),
  st.sampled_from(VALUES),
)
_LABELS = st.one_of(
  st.none(),
  st.lists(st.sampled_from([0, 1]), max_size=5),
  st.lists(_NUMBER, max_size=3),
  st.sampled_from(VALUES),
)
_BOX = st.one_of(
  st.none(),
  st.lists(_FINITE, min_size=4, max_size=4).map(lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]),
  st.lists(_NUMBER, min_size=3, max_size=5),
  st.sampled_from(VALUES),
)  # fmt: skip
_MASK = st.one_of(
  st.none(),
  st.none(),
  st.sampled_from([0.0, 1.0, -1e6, 1e7, float('nan'), 1e300]).map(lambda v: np.full((16, 16), v)),
  st.just(np.ones((1, 16, 16), bool)),
  st.sampled_from([(16,), (0, 0), (3, 16, 16), (256, 256)]).map(np.zeros),
  st.sampled_from(VALUES),
)
_TEXT = st.one_of(st.none(), st.just('the red circle'), st.sampled_from(VALUES))
_MULTIMASK = st.one_of(st.booleans(), st.booleans(), st.sampled_from(VALUES))


def prepare(folder: Path) -> None:
  save_sam(folder / 'sam')
  save_text_model(folder / 'text')


@functools.cache
def _segmenter(model: Path) -> Segmenter:
  return Segmenter(model)


@functools.cache
def _predictor(model: Path) -> SamPredictor:
  predictor = SamPredictor(model)
  predictor.set_image(picture())
  return predictor


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  model = made / chance.choice(['sam', 'text'])
  outcomes = set()

  @quiet(chance)
  @given(_TEXT, _POINTS, _LABELS, _BOX, _MASK, _MULTIMASK)
  def segment(text, points, labels, box, mask, multimask) -> None:
    outcome, found = attempt(lambda: _segmenter(model)(picture(), Prompt(text, points, labels, box, mask, multimask)))
    outcomes.add(outcome)
    if outcome == ACCEPTED:
      _check(3 if multimask else 1, found.masks, found.scores, found.low_res_logits, found.logits)

  @quiet(chance)
  @given(_TEXT, _POINTS, _LABELS, _BOX, _MASK, st.one_of(st.none(), st.booleans()))
  def predict(text, points, labels, box, mask, multimask) -> None:
    outcome, found = attempt(lambda: _predictor(model).predict(points, labels, box, mask, multimask, text=text))
    outcomes.add(outcome)
    if outcome == ACCEPTED:
      several = text is None if multimask is None else multimask
      _check(3 if several else 1, *found)

  @quiet(chance)
  @given(
    st.one_of(st.sampled_from(VALUES), st.lists(st.lists(_PAIR, min_size=2, max_size=2), min_size=1, max_size=3)),
    st.one_of(st.sampled_from(VALUES), st.lists(st.just([1, 0]), min_size=1, max_size=3)),
    st.one_of(st.none(), st.sampled_from(VALUES)),
  )
  def predict_batch(points, labels, boxes) -> None:
    outcome, found = attempt(lambda: _predictor(model).predict_batch(points, labels, boxes))
    outcomes.add(outcome)
    if outcome == ACCEPTED:
      check_numbers(scores=found[1], low=found[2])

  chance.choice([segment, segment, predict, predict_batch])()
  return PARTLY if len(outcomes) > 1 else outcomes.pop() if outcomes else REFUSED


def _check(count: int, masks, scores, low_res_logits, logits=()) -> None:
  check_numbers(scores=scores, low_res_logits=low_res_logits, logits=logits)
  if masks.shape != (count, *picture().shape[:2]) or masks.dtype != bool or scores.shape != (count,):
    raise Violation('wrong result', f'masks {masks.shape} {masks.dtype}, scores {scores.shape}')
