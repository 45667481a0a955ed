"""Sentences, drawn by hypothesis: to word pieces, and through the model."""

import functools
import random
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.tokenization import MAX_TEXT_BYTES, Tokenizer
from ditsam_jax.vocabulary import END, START, UNKNOWN
from tests.fuzz.mutations import TEXTS, VALUES
from tests.fuzz.outcomes import ACCEPTED, PARTLY, REFUSED, Violation, attempt, check_numbers
from tests.fuzz.seeds import WORDS, picture, save_text_model

_SENTENCES = st.one_of(
  st.text(),
  st.text(st.characters(exclude_categories=())),
  st.lists(st.sampled_from([*WORDS, *map(str.upper, WORDS)]), max_size=30).map(' '.join),
  st.text(st.sampled_from('\u0301\u200d\u0e33\ufdfa\u4e00\U0001f469 a'), max_size=300),
  st.sampled_from(TEXTS),
  st.integers(1, 2 * MAX_TEXT_BYTES).map(lambda n: 'a ' * n),
)
_ANYTHING = st.one_of(_SENTENCES, st.sampled_from(VALUES), st.binary())
_EXAMPLES = 12


def prepare(folder: Path) -> None:
  save_text_model(folder / 'model')


@functools.cache
def _segmenter(model: Path) -> Segmenter:
  return Segmenter(model)


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  outcomes = set()
  segmenter = _segmenter(made / 'model')
  tokenizer = Tokenizer(made / 'model' / 'vocab.txt', chance.choice([3, 4, 6]))

  @quiet(chance)
  @given(_SENTENCES)
  def pieces(text: str) -> None:
    outcome, found = attempt(lambda: (tokenizer([text]), tokenizer.cut(text), tokenizer.unknown(text)))
    outcomes.add(outcome)
    if outcome == ACCEPTED:
      _check_pieces(tokenizer, text, *found)

  @quiet(chance)
  @given(_ANYTHING)
  def masks(text) -> None:
    outcome, found = attempt(lambda: segmenter(picture(), text))
    outcomes.add(outcome)
    if outcome == ACCEPTED and text is not None and not isinstance(text, list):
      check_numbers(logits=found.logits, scores=found.scores, low=found.low_res_logits)
      if found.masks.shape != (1, *picture().shape[:2]):
        raise Violation('wrong result', f'masks {found.masks.shape}')

  chance.choice([pieces, masks])()
  return PARTLY if len(outcomes) > 1 else outcomes.pop() if outcomes else REFUSED


def quiet(chance: random.Random):
  """Settings of hypothesis: examples that depend on the case alone; a failing one is made small."""
  number = chance.randrange(2**32)
  configured = settings(
    max_examples=_EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
  )
  return lambda test: seed(number)(configured(test))


def _check_pieces(tokenizer: Tokenizer, text: str, rows, cut: str, unknown: list[str]) -> None:
  ids, mask = rows[0][0], rows[1][0]
  length = int(mask.sum())
  vocabulary = tokenizer.vocabulary
  right = (
    ids.shape == (tokenizer.max_tokens,)
    and ids[0] == vocabulary[START]
    and ids[length - 1] == vocabulary[END]
    and not ids[length:].any()
    and (np.sort(mask)[::-1] == mask).all()
  )
  if not right or cut and not text.rstrip().endswith(cut):
    raise Violation('wrong result', f'{text!r}: {ids} {mask} cut {cut!r}')
  if vocabulary[UNKNOWN] in ids and not unknown:
    raise Violation('wrong result', f'{text!r}: unknown words {unknown}, ids {ids}')
