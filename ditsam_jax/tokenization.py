"""Tokenizes sentences into BERT WordPiece ids of a fixed length."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.paths import any_path
from ditsam_jax.storage.vocabulary import END, LONGEST_WORD, MASK, PAD, SPECIAL, START, UNKNOWN, read_vocabulary

MAX_TEXT_BYTES = 10_000  # per sentence; longer texts are not sentences, and would take long to tokenize
_MOST_KEPT = 2**18  # sentences; RefCOCO has 142,209


class _Pieces(NamedTuple):
  """The word pieces of a text: ids, word index of each piece, and its span in the text."""

  ids: list[int]
  words: list[int | None]
  places: list[tuple[int, int]]

  def span(self, word: int) -> tuple[int, int]:
    """The start and end of a word in the text."""
    places = [place for place, number in zip(self.places, self.words) if number == word]
    return places[0][0], places[-1][1]


class Tokenizer:
  """BERT's tokenizer on a local vocabulary: lower-cased, `[CLS] words [SEP]`, padded to `max_tokens`.

  Sentences are cached. Threads may share a tokenizer. A missing or invalid vocabulary raises UserError.
  """

  def __init__(self, vocabulary_file: str | AnyPath, max_tokens: int, *, kept: int = _MOST_KEPT):
    """Reads the vocabulary. `kept`: sentences that are cached."""
    if max_tokens < 3:
      raise UserError(f'max_tokens is {max_tokens}, expected at least 3: [CLS], one word piece, [SEP]')
    self.vocabulary_file = any_path(vocabulary_file)
    self.max_tokens = max_tokens
    self._kept = kept
    self.vocabulary = read_vocabulary(self.vocabulary_file)
    self._bert = _bert_tokenizer(self.vocabulary)
    self._letters = {index for piece, index in self.vocabulary.items() if len(piece.removeprefix('##')) == 1}
    self._rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  def __reduce__(self):
    # Worker processes start with an empty cache.
    return Tokenizer, (self.vocabulary_file, self.max_tokens)

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns token ids and 0/1 mask of `texts`, both int32 [n, max_tokens]; longer texts are truncated."""
    if isinstance(texts, str):  # whose letters are no sentences
      raise UserError(f'text {texts!r}: expected a list of sentences')
    rows = [self._row(text) for text in texts]
    if not rows:
      return np.zeros((0, self.max_tokens), np.int32), np.zeros((0, self.max_tokens), np.int32)
    return np.stack([ids for ids, _ in rows]), np.stack([mask for _, mask in rows])

  def cut(self, text: str) -> str:
    """The end of `text`, from the first word that does not fit into `max_tokens`.

    '' if everything fits, or if only `unknown` words don't.
    """
    pieces = self._pieces(text)
    if len(pieces.ids) <= self._room:
      return ''
    first = pieces.words[self._room]
    unknown = self._unknown_words(pieces)
    if all(word in unknown for word in pieces.words[self._room :]):
      return ''
    return text[pieces.places[pieces.words.index(first)][0] :].strip()

  def unknown(self, text: str) -> list[str]:
    """Returns the distinct words of `text` that are missing from the vocabulary.

    The model reads them as [UNK] or letter by letter, which carries no meaning.
    """
    return list(dict.fromkeys(text[start:end] for start, end in self.unknown_places(text)))

  def unknown_places(self, text: str) -> list[tuple[int, int]]:
    """Returns the start and end of each unknown word in `text`, including repeated ones."""
    pieces = self._pieces(text)
    return [pieces.span(word) for word in self._unknown_words(pieces)]

  def known_pieces(self, word: str) -> list[int]:
    """Returns the ids of the pieces of `word`; [] if it is `unknown`."""
    pieces = self._pieces(word)
    return [] if self._unknown_words(pieces) else pieces.ids

  def _unknown_words(self, pieces: _Pieces) -> list[int]:
    """Returns the indices of the unknown words, in order."""
    spelled: dict[int, list[int]] = {}
    for piece, word in zip(pieces.ids, pieces.words):
      if word is not None:  # None for special tokens
        spelled.setdefault(word, []).append(piece)
    return [
      word
      for word, ids in spelled.items()
      if self.vocabulary[UNKNOWN] in ids or len(ids) > 1 and self._letters.issuperset(ids)
    ]

  @property
  def _room(self) -> int:
    return self.max_tokens - 2  # [CLS] and [SEP]

  def _pieces(self, text: str) -> _Pieces:
    try:
      encoding = self._bert.encode(text, add_special_tokens=False)
    except TypeError as error:  # not a string, or one with a lone surrogate, which Rust cannot represent
      raise UserError(f'text {text!r}: not valid Unicode; expected a sentence') from error
    return _Pieces(encoding.ids, encoding.word_ids, encoding.offsets)

  def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    row = self._rows.get(text)
    if row is None:
      if len(self._rows) >= self._kept:
        self._rows.clear()
      ids = [self.vocabulary[START], *self._pieces(text).ids[: self._room], self.vocabulary[END]]
      padded = np.full(self.max_tokens, self.vocabulary[PAD], np.int32)
      padded[: len(ids)] = ids
      row = self._rows.setdefault(text, (padded, (np.arange(self.max_tokens) < len(ids)).astype(np.int32)))
    return row


def words_of(text: str) -> list[str]:
  """Splits a text into words and punctuation as BERT does before the vocabulary: lower-cased, without accents."""
  normalizer, splitter = _bert_words()
  return [word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]


@functools.cache
def _bert_words():
  from tokenizers import normalizers, pre_tokenizers

  return normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()


def _bert_tokenizer(vocabulary: dict[str, int]):
  """Builds the same tokenizer as transformers.BertTokenizerFast, whose import takes a second and needs PyTorch."""
  from tokenizers import Tokenizer as RustTokenizer
  from tokenizers import models, normalizers, pre_tokenizers

  bert = RustTokenizer(models.WordPiece(vocabulary, unk_token=UNKNOWN, max_input_chars_per_word=LONGEST_WORD))
  bert.normalizer = normalizers.BertNormalizer(lowercase=True)
  bert.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  bert.add_special_tokens([token for token in (*SPECIAL, MASK) if token in vocabulary])  # if a sentence contains them
  return bert
