"""Adds words to a vocabulary (config.data.add_words) and rows to the text encoder's embedding.

A new word is a new piece at the end of the vocabulary, so other ids do not change.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from ditsam_jax.config.run import RunConfig
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.fields import shown
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.parallel import distributed
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import write_text
from ditsam_jax.storage.vocabulary import LONGEST_WORD, read_vocabulary
from ditsam_jax.terminal import listed, printable
from ditsam_jax.tokenization import Tokenizer, words_of
from ditsam_jax.training.step import TrainState

EMBEDDING = 'text_encoder.embeddings.word_embeddings.embedding'
FROM_DATA = 'from-data'  # cannot be a word: the tokenizer splits at hyphens


@dataclasses.dataclass(frozen=True)
class Added:
  """A run's new words, and the model with rows for them; see `added`."""

  words: tuple[str, ...]
  model: DitSamConfig
  _before: Tokenizer

  def grown(self, state: TrainState, config: RunConfig) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Returns the function with which `read_start` extends the start's embedding, by parameter name.

    Raises:
      UserError: the new rows would never be trained.
    """
    if not self.words:
      return {}
    if EMBEDDING not in state.params:
      raise UserError(
        f'config.freeze is {shown(config.freeze)}, so the {len(self.words)} new words of config.data.add_words '
        f'({listed(self.words, 3)}) would stay untrained; freeze less: text_encoder.layers leaves embeddings trainable'
      )
    rows = state.params[EMBEDDING].shape[0]
    return {EMBEDDING: lambda table: table_with(table, self.words, self._before, rows, config.seed)}

  def write(self, file: AnyPath) -> AnyPath:
    """Writes the complete vocabulary on the first host while others wait. Raises UserError if that fails."""
    return distributed.first_alone_first(lambda: self._write(file) if distributed.is_first() else file, 'vocabulary')

  def _write(self, file: AnyPath) -> AnyPath:
    try:
      write_text(file, '\n'.join((*self._before.vocabulary, *self.words)) + '\n')
    except OSError as error:
      raise UserError(f'the vocabulary cannot be written to {printable(file)}: {error.strerror or error}') from error
    return file


def added(config: RunConfig, vocabulary: AnyPath, source: ReferringSource, begun: AnyPath | None) -> Added:
  """Returns the words that `config.data.add_words` adds, and the extended model.

  Args:
    config: the run's config, with the model that training starts from.
    vocabulary: vocabulary file of that model.
    source: the training split.
    begun: vocabulary file of a resumed run; takes precedence if it exists.

  Raises:
    UserError: an entry is not a single word, or there are too many words.
  """
  before = Tokenizer(vocabulary, config.model.max_text_tokens)
  if begun is not None and begun.exists():
    new = list(read_vocabulary(begun))[len(before.vocabulary) :]
  else:
    new = new_words(config.data.add_words, before, source)
    distributed.tell(f'{len(new)} words added to the vocabulary{f": {listed(new, 10)}" if new else ""}')
  text = config.model.text_encoder
  assert text is not None  # see config/checks.py
  try:
    text = dataclasses.replace(text, vocab_size=max(text.vocab_size, len(before.vocabulary) + len(new)))
    model = dataclasses.replace(config.model, text_encoder=text)
  except ValueError as error:
    raise UserError(f'config.data.add_words adds {len(new):,} words: {error}') from error
  return Added(tuple(new), model, before)


def new_words(add_words: str, tokenizer: Tokenizer, source: ReferringSource) -> list[str]:
  """Returns the words that `config.data.add_words` adds to a tokenizer's vocabulary, sorted.

  Args:
    add_words: words separated by commas; FROM_DATA adds all words of `source` that the tokenizer does not know.
    tokenizer: tokenizer of the model that training starts from.
    source: the training split.

  Raises:
    UserError: an entry is not a single word.
  """
  asked = [word.strip() for word in add_words.split(',') if word.strip()]
  found = set()
  for word in asked:
    if word != FROM_DATA:
      found.add(_single(word))
  if FROM_DATA in asked:
    found |= unknown_words(tokenizer, source)
  return sorted(word for word in found if word not in tokenizer.vocabulary)


def unknown_words(tokenizer: Tokenizer, source: ReferringSource) -> set[str]:
  """Returns all words in a split's sentences that a tokenizer reads as [UNK] or letter by letter."""
  found: set[str] = set()
  for image in range(source.num_images):
    record = source.image(image)
    for index in range(record.num_objects):
      for sentence in record.expressions(index):
        found.update(tokenizer.unknown(sentence))
  words = {word for text in found for word in words_of(text)}
  return {word for word in words if len(word) <= LONGEST_WORD}  # BERT tokenizers do not read longer words


def table_with(table: np.ndarray, words: Sequence[str], tokenizer: Tokenizer, rows: int, seed: int) -> np.ndarray:
  """Returns the embedding with rows for new words; other rows are bit-identical.

  A new row is the mean of the pieces that the word was split into. If there are no meaningful pieces, it is drawn from
  a normal distribution with the mean and standard deviation of each channel over the vocabulary.

  Args:
    table: float [R, C], the start's embedding; rows beyond its vocabulary are unused.
    words: new words from `new_words`.
    tokenizer: tokenizer with the original vocabulary.
    rows: number of rows of the result, at least the number of all words.
    seed: seed of the random rows.
  """
  known = table[: len(tokenizer.vocabulary)].astype(np.float32)
  rng = np.random.default_rng(seed)
  mean, deviation = known.mean(axis=0), known.std(axis=0)
  grown = np.zeros((rows, table.shape[1]), table.dtype)
  grown[: len(table)] = table
  for index, word in enumerate(words, start=len(known)):
    pieces = tokenizer.known_pieces(word)
    grown[index] = known[pieces].mean(axis=0) if pieces else rng.normal(mean, deviation)
  return grown


def _single(word: str) -> str:
  spelled = words_of(word)
  if len(spelled) != 1 or len(spelled[0]) > LONGEST_WORD:
    problem = f'is read as {len(spelled)} words' if len(spelled) != 1 else f'has more than {LONGEST_WORD} characters'
    raise UserError(
      f'config.data.add_words: {shown(word)} {problem}; expected single words separated by commas, or {FROM_DATA}'
    )
  return spelled[0]
