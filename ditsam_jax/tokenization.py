"""Sentences to BERT WordPiece ids of a fixed length."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ditsam_jax.errors import UserError

_PAD, _UNKNOWN, _START, _END = '[PAD]', '[UNK]', '[CLS]', '[SEP]'
MAX_TEXT_BYTES = 10_000  # of one sentence: more is no sentence, and reading it would take long


class Tokenizer:
  """BERT's tokenizer on a local vocabulary: lower-cased, `[CLS] words [SEP]`, padded to `max_tokens`.

  Each distinct sentence is tokenised once; one object may be used from several threads.
  A vocabulary that is missing or is no WordPiece list raises UserError.
  """

  def __init__(self, vocabulary_file: str | Path, max_tokens: int):
    if max_tokens < 3:
      raise UserError(f'max_tokens is {max_tokens}, expected at least 3: [CLS], one word piece, [SEP]')
    self.vocabulary_file = Path(vocabulary_file)
    self.max_tokens = max_tokens
    self.vocabulary = read_vocabulary(self.vocabulary_file)
    self._bert = _bert_tokenizer(self.vocabulary)
    # Padding and truncation are settings of the one Rust object: two threads may not be in it at once.
    self._lock = threading.Lock()
    self._known: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  def __reduce__(self):
    # A worker process gets its own lock and an empty cache.
    return Tokenizer, (self.vocabulary_file, self.max_tokens)

  def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and 0/1 mask of `texts`, both int32 [n, max_tokens]; what does not fit is left out."""
    rows = [self._row(text) for text in texts]
    if not rows:
      return np.zeros((0, self.max_tokens), np.int32), np.zeros((0, self.max_tokens), np.int32)
    return np.stack([ids for ids, _ in rows]), np.stack([mask for _, mask in rows])

  def cut(self, text: str) -> str:
    """The end of `text`, from the first word that does not wholly fit in `max_tokens`; '' if all fits."""
    with self._lock:
      pieces = self._bert(text, add_special_tokens=False, return_offsets_mapping=True)
    room = self.max_tokens - 2  # [CLS] and [SEP]
    words = pieces.word_ids()
    if len(words) <= room:
      return ''
    first_piece = words.index(words[room])
    return text[pieces['offset_mapping'][first_piece][0] :].strip()

  def unknown(self, text: str) -> tuple[str, ...]:
    """The words of `text` that the vocabulary lacks, which are read as [UNK]; each once, in their order."""
    with self._lock:
      pieces = self._bert(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(pieces['input_ids'], pieces['offset_mapping'])
    return tuple(dict.fromkeys(text[start:end] for piece, (start, end) in spans if piece == self.vocabulary[_UNKNOWN]))

  def _row(self, text: str) -> tuple[np.ndarray, np.ndarray]:
    known = self._known.get(text)
    if known is not None:
      return known
    with self._lock:
      if text not in self._known:  # no other thread was first
        tokens = self._bert(text, padding='max_length', truncation=True, max_length=self.max_tokens)
        self._known[text] = np.array(tokens['input_ids'], np.int32), np.array(tokens['attention_mask'], np.int32)
      return self._known[text]


def read_vocabulary(file: Path) -> dict[str, int]:
  """Word pieces to ids, one piece a line as in BERT's `vocab.txt`; UserError when missing or malformed."""
  try:
    pieces = file.read_text(encoding='utf-8').split('\n')
  except OSError as error:
    raise UserError(f'cannot read the vocabulary {file}: {error.strerror}; expected a BERT vocab.txt') from error
  except UnicodeDecodeError as error:
    raise UserError(f'the vocabulary {file} is not UTF-8 text; expected a BERT vocab.txt') from error
  pieces = [piece.rstrip('\r') for piece in pieces]
  while pieces and not pieces[-1]:
    pieces.pop()
  vocabulary = {piece: index for index, piece in enumerate(pieces)}
  missing = [special for special in (_PAD, _UNKNOWN, _START, _END) if special not in vocabulary]
  if missing:
    raise UserError(
      f'the vocabulary {file} lacks {", ".join(missing)}; expected a BERT vocab.txt, one word piece a line'
    )
  if len(vocabulary) != len(pieces):
    twice = next(piece for index, piece in enumerate(pieces) if vocabulary[piece] != index)
    raise UserError(f'the vocabulary {file} holds {twice!r} twice; expected each word piece once')
  return vocabulary


def _bert_tokenizer(vocabulary: dict[str, int]):
  from transformers import BertTokenizerFast  # takes over a second to import, so only when sentences are read

  # As a dictionary: transformers 5 ignores `vocab_file=` and answers [UNK] to every word.
  return BertTokenizerFast(vocab=vocabulary, do_lower_case=True)
