"""WordPiece vocabularies: BERT's vocab.txt and Hugging Face's tokenizer.json."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import AnyPath
from ditsam_jax.storage.files import read_bytes, read_json
from ditsam_jax.storage.paths import any_path
from ditsam_jax.terminal import listed, printable

PAD, UNKNOWN, START, END, MASK = '[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'
SPECIAL = (PAD, UNKNOWN, START, END)
LONGEST_WORD = 100  # characters, BERT's limit
MOST_BYTES = 2**26  # of a vocabulary file; the largest tokenizer.json in use has a quarter

# The settings of a tokenizer.json that give the same ids as BERT's lower-casing tokenizer.
_EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
  'model': {
    'type': ('WordPiece',),
    'unk_token': (UNKNOWN,),
    'continuing_subword_prefix': ('##',),
    'max_input_chars_per_word': (LONGEST_WORD,),
  },
  'normalizer': {
    'type': ('BertNormalizer',),
    'lowercase': (True,),
    'strip_accents': (None, True),
    'clean_text': (True,),
    'handle_chinese_chars': (True,),
  },
  'pre_tokenizer': {'type': ('BertPreTokenizer',)},
}
# Likewise for a tokenizer_config.json next to a vocabulary; missing settings default to BERT's.
_EXPECTED_CONFIG = {'do_lower_case': (True,), 'strip_accents': (None, True), 'tokenize_chinese_chars': (True,)}


def read_vocabulary(file: str | AnyPath) -> dict[str, int]:
  """Reads word pieces and their ids from BERT's `vocab.txt` (one piece per line) or Hugging Face's `tokenizer.json`.

  Raises:
    UserError: the file is missing or malformed, or a tokenizer.json describes another tokenizer than BERT's.
  """
  file = any_path(file)
  pieces = _from_json(file) if file.suffix == '.json' else _from_text(file)
  vocabulary = {piece: index for index, piece in enumerate(pieces)}
  missing = [special for special in SPECIAL if special not in vocabulary]
  if missing:
    raise UserError(
      f'the vocabulary {printable(file)} lacks {", ".join(missing)}; expected a BERT vocab.txt, one word piece per line'
    )
  if len(vocabulary) != len(pieces):
    twice = next(piece for index, piece in enumerate(pieces) if vocabulary[piece] != index)
    raise UserError(f"the vocabulary {printable(file)} holds '{printable(twice)}' twice; expected each word piece once")
  return vocabulary


def fingerprint(pieces: Iterable[str]) -> str:
  """SHA-256 of word pieces in order."""
  return hashlib.sha256('\n'.join(pieces).encode('utf-8', 'surrogatepass')).hexdigest()


def check_settings(folder: Path) -> None:
  """Raises UserError if a folder's tokenizer_config.json specifies another tokenizer than BERT's lower-casing one."""
  file = folder / 'tokenizer_config.json'
  if not file.exists():
    return
  content = read_json(file, most_bytes=MOST_BYTES)
  _expect(file, content if isinstance(content, dict) else {}, _EXPECTED_CONFIG, required=False)


def check_lower_case(vocabulary: Iterable[str], file: Path) -> None:
  """Raises UserError for the vocabulary of a cased model."""
  pieces = [piece for piece in vocabulary if not piece.startswith('[')]
  capital = [piece for piece in pieces if piece != piece.lower()]
  if len(capital) * 20 > len(pieces):
    raise UserError(
      f'{printable(file)} is the vocabulary of a cased BERT ({listed(capital, 3)}); '
      f'only uncased ones, such as bert-base-uncased, are supported'
    )


def _from_text(file: AnyPath) -> list[str]:
  try:
    pieces = [piece.rstrip('\r') for piece in read_bytes(file, most_bytes=MOST_BYTES).decode().split('\n')]
  except UnicodeDecodeError as error:
    raise UserError(f'the vocabulary {printable(file)} is not UTF-8 text; expected a BERT vocab.txt') from error
  except UserError as error:
    raise UserError(f'cannot read the vocabulary: {error}; expected a BERT vocab.txt') from error
  while pieces and not pieces[-1]:
    pieces.pop()
  return pieces


def _from_json(file: AnyPath) -> list[str]:
  """Reads the word pieces of a tokenizer.json, sorted by id."""
  content = read_json(file, most_bytes=MOST_BYTES)
  if not isinstance(content, dict):
    raise UserError(f'{printable(file)} is not a tokenizer.json; expected a Hugging Face one, or a vocab.txt')
  for part, expected in _EXPECTED.items():
    given = content.get(part)
    _expect(file, given if isinstance(given, dict) else {}, expected, required=True, part=f'{part}.')
  vocab = content['model'].get('vocab')
  if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
    raise UserError(f'{printable(file)} lacks model.vocab, the word pieces with their numbers; give a vocab.txt')
  if sorted(vocab.values()) != list(range(len(vocab))):
    raise UserError(
      f'{printable(file)}: model.vocab does not number its {len(vocab)} word pieces from 0 to {len(vocab) - 1}, '
      f'each once; give a vocab.txt'
    )
  added = content.get('added_tokens') or []
  tokens = [token if isinstance(token, dict) else {} for token in added] if isinstance(added, list) else [{}]
  strange = [
    token.get('content')
    for token in tokens
    if token.get('content') not in (*SPECIAL, MASK) or token['content'] not in vocab
  ]
  if strange:
    raise UserError(
      f'{printable(file)} adds tokens of its own ({listed(strange, 3)}), which are not supported; '
      f'only those of BERT are: {", ".join((*SPECIAL, MASK))}'
    )
  return sorted(vocab, key=vocab.__getitem__)


def _expect(
  file: AnyPath, given: dict, expected: dict[str, tuple[Any, ...]], *, required: bool, part: str = ''
) -> None:
  for field, values in expected.items():
    if field not in given and not required:
      continue
    value = given.get(field)
    if not any(value is allowed or type(value) is type(allowed) and value == allowed for allowed in values):
      raise UserError(
        f'{printable(file)} says {part}{field} is {printable(repr(value))}; only {" or ".join(map(repr, values))} '
        f"is supported, as in bert-base-uncased's tokenizer"
      )
