"""Selects the usable sentences of an object."""

from collections.abc import Sequence

from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.limits import MAX_SENTENCES
from ditsam_jax.tokenization import MAX_TEXT_BYTES


def good_sentences(texts: Sequence[str], what: str, found: Problems) -> tuple[str, ...]:
  """Returns the usable sentences and adds problems to `found`, which call the object `what`."""
  if not texts:
    found.add(problems.NO_SENTENCE, what)
  if len(texts) > MAX_SENTENCES:
    found.add(problems.MANY_SENTENCES, f'{what} ({len(texts):,})')
    return ()
  good = []
  for index, text in enumerate(texts):
    if not text.strip():
      found.add(problems.BLANK_SENTENCE, f'sentence {index} of {what}')
    elif len(text.encode()) > MAX_TEXT_BYTES:
      found.add(problems.LONG_SENTENCE, f'sentence {index} of {what}')
    else:
      good.append(text)
  return tuple(good)
