"""BERT token ids, checked by hand-made cases and by `tokenizers`' own WordPiece class."""

import json
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from ditsam_jax.data import shapes
from ditsam_jax.errors import UserError
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.tokenization import Tokenizer

SHAPES_VOCABULARY = Path(shapes.__file__).parent / 'vocab.txt'
SENTENCES = ['the red box', 'Boxes, on the LEFT', 'a purple box', 'third box on the right of the green box', '']
_ODD = [
  'é',
  'ß',
  '中国',
  '[CLS]',
  '[MASK]',
  '[UNK]',
  '\u200b',
  '\x00',
  '\t',
  ',',
  "'",
  'ﬁ',
  '½',
  'İ',
  '😀',
  '\u0301',
  'x' * 101,
]


def test_a_sentence_by_hand(tmp_path):
  file = tmp_path / 'vocab.txt'
  # Special tokens may be on any line: their ids are read from the file.
  file.write_text('[UNK]\n[CLS]\nbox\n##es\n[SEP]\nred\n[PAD]\n')
  ids, mask = Tokenizer(file, 7)(['Red boxes there', 'box'])
  assert ids.tolist() == [[1, 5, 2, 3, 0, 4, 6], [1, 2, 4, 6, 6, 6, 6]]
  assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0]]
  assert ids.dtype == mask.dtype == np.int32


@pytest.mark.verifies(
  'Token ids and masks', against="tokenizers' WordPiece and transformers' BertTokenizerFast", within='equal'
)
def test_agrees_with_the_plain_wordpiece_tokenizer(vocabulary_file):
  plain = tokenizers.BertWordPieceTokenizer(str(vocabulary_file), lowercase=True)
  plain.enable_truncation(8)
  plain.enable_padding(length=8, pad_id=plain.token_to_id('[PAD]'))
  ids, mask = Tokenizer(vocabulary_file, 8)(SENTENCES)
  expected = plain.encode_batch(SENTENCES)
  assert ids.tolist() == [row.ids for row in expected]
  assert mask.tolist() == [row.attention_mask for row in expected]


def test_a_string_is_no_list_of_sentences(vocabulary_file):
  with pytest.raises(UserError, match="text 'red': expected a list of sentences"):
    Tokenizer(vocabulary_file, 10)('red')


def test_no_sentences_give_no_rows(vocabulary_file):
  ids, mask = Tokenizer(vocabulary_file, 8)([])
  assert ids.shape == mask.shape == (0, 8)


@pytest.mark.parametrize(
  'text, cut',
  [
    ('the red box', ''),  # 3 word pieces, which just fit
    ('the red box on the Left', 'on the Left'),
    ('the red boxes', 'boxes'),  # 'box' would fit, 'boxes' does not
    ('the  red,  box  on', 'box  on'),
    ('', ''),
  ],
)
def test_cut_returns_the_words_that_do_not_fit(vocabulary_file, text, cut):
  assert Tokenizer(vocabulary_file, 5).cut(text) == cut


def test_a_tokenizer_can_be_shared_by_threads(vocabulary_file):
  texts = [
    f'{a} {b} box on {c}' for a in 'a the red'.split() for b in 'green blue'.split() for c in 'left right'.split()
  ] * 20
  expected = Tokenizer(vocabulary_file, 8)(texts)[0]
  shared = Tokenizer(vocabulary_file, 8)
  with ThreadPoolExecutor(8) as pool:
    rows = list(pool.map(lambda text: (shared.cut(text), shared([text])[0][0])[1], texts))
  np.testing.assert_array_equal(rows, expected)


@pytest.mark.verifies(
  'Token ids and masks', against="tokenizers' WordPiece and transformers' BertTokenizerFast", within='equal'
)
def test_ids_equal_those_of_transformers(vocabulary_file):
  """Sentences of unusual characters, accents, literal special tokens and overlong words."""
  transformers = pytest.importorskip('transformers')
  rng = random.Random(0)
  ours = Tokenizer(vocabulary_file, 9)
  theirs = transformers.BertTokenizerFast(vocab=ours.vocabulary, do_lower_case=True)
  parts = [*_ODD, *ours.vocabulary]
  for _ in range(500):
    text = ''.join(rng.choice(parts) + rng.choice(['', ' ']) for _ in range(rng.randint(0, 12)))
    expected = theirs(text, padding='max_length', truncation=True, max_length=9)
    ids, mask = ours([text])
    assert (ids[0].tolist(), mask[0].tolist()) == (expected['input_ids'], expected['attention_mask']), repr(text)


@pytest.mark.parametrize(
  'text, unknown',
  [
    ('the red box', []),
    ('the Purple box', ['Purple']),
    ('purple purple cat', ['purple', 'cat']),
    ('a photo', ['photo']),
    ('the red box on the purple left', ['purple']),  # beyond the limit and unknown
    ('red ☃', ['☃']),
    ('red ' + 'x' * 101, ['x' * 101]),
    ('', []),
  ],
)
def test_unknown_words_are_those_the_model_reads_as_unk(vocabulary_file, text, unknown):
  tokenizer = Tokenizer(vocabulary_file, 20)
  assert tokenizer.unknown(text) == unknown
  assert (tokenizer.vocabulary['[UNK]'] in Tokenizer(vocabulary_file, 8)([text])[0]) == bool(unknown)


@pytest.mark.parametrize(
  'text, unknown, cut',
  [
    ('a photo of a cat', ['photo', 'cat'], ''),  # 'cat' does not fit either, but is reported as unknown
    ('a red circle', [], ''),
    ('a cat left of the small red square', ['cat'], 'small red square'),
    ('the red circle and not the left square or cat', ['and', 'or', 'cat'], 'the left square or cat'),
  ],
)
def test_words_spelled_letter_by_letter_are_unknown(text, unknown, cut):
  tokenizer = Tokenizer(SHAPES_VOCABULARY, 9 if 'photo' not in text else 12)
  assert (tokenizer.unknown(text), tokenizer.cut(text)) == (unknown, cut)


def tokenizer_json(vocabulary, **changes) -> dict:
  """The tokenizer.json that transformers writes, with `changes` to its parts."""
  transformers = pytest.importorskip('transformers')
  content = json.loads(transformers.BertTokenizerFast(vocab=vocabulary, do_lower_case=True).backend_tokenizer.to_str())
  for part, fields in changes.items():
    content[part] = content[part] | fields if isinstance(fields, dict) else fields
  return content


def test_a_tokenizer_json_is_read_like_its_vocab_txt(vocabulary_file, tmp_path):
  vocabulary = read_vocabulary(vocabulary_file)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(tokenizer_json(vocabulary)))
  assert read_vocabulary(tmp_path / 'tokenizer.json') == vocabulary


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'model': {'type': 'BPE'}}, "model.type is 'BPE'; only 'WordPiece'"),
    ({'model': {'vocab': None}}, 'lacks model.vocab'),
    ({'model': {'vocab': {'[PAD]': 0, '[UNK]': 2}}}, 'does not number its 2 word pieces'),
    ({'model': {'max_input_chars_per_word': 50}}, 'max_input_chars_per_word is 50'),
    ({'normalizer': {'lowercase': False}}, 'normalizer.lowercase is False; only True'),
    ({'normalizer': {'strip_accents': False}}, 'normalizer.strip_accents is False; only None or True'),
    ({'normalizer': None}, 'normalizer.type is None'),
    ({'pre_tokenizer': {'type': 'Whitespace'}}, "pre_tokenizer.type is 'Whitespace'"),
    ({'added_tokens': [{'id': 99, 'content': '<thing>\n'}]}, r'tokens of its own \(<thing>\\n\)'),
  ],
)
def test_a_tokenizer_json_of_another_tokenizer_is_refused(vocabulary_file, tmp_path, changes, message):
  content = tokenizer_json(read_vocabulary(vocabulary_file), **changes)
  (tmp_path / 'tokenizer.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match=message) as error:
    Tokenizer(tmp_path / 'tokenizer.json', 8)
  assert '\n' not in str(error.value)


def test_a_pickled_copy_gives_the_same_ids(vocabulary_file):
  tokenizer = Tokenizer(vocabulary_file, 8)
  np.testing.assert_array_equal(pickle.loads(pickle.dumps(tokenizer))(SENTENCES), tokenizer(SENTENCES))


@pytest.mark.parametrize(
  'content, message',
  [
    (None, 'cannot read the vocabulary'),
    (b'', r'lacks \[PAD\], \[UNK\], \[CLS\], \[SEP\]'),
    (b'[PAD]\n[UNK]\n[SEP]\nred\n', r'lacks \[CLS\]'),
    (b'[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\nred\n', "'red' twice"),
    (b'\xff\xfe\x00', 'not UTF-8'),
  ],
)
def test_a_bad_vocabulary_is_named(tmp_path, content, message):
  file = tmp_path / 'vocab.txt'
  if content is not None:
    file.write_bytes(content)
  with pytest.raises(UserError, match=message) as error:
    Tokenizer(file, 8)
  assert str(file) in str(error.value)


def test_too_few_tokens_for_a_word_are_refused(vocabulary_file):
  with pytest.raises(UserError, match='max_tokens is 2'):
    Tokenizer(vocabulary_file, 2)


def test_importing_the_module_does_not_import_tokenizers():
  code = 'import sys; from ditsam_jax.tokenization import Tokenizer; sys.exit("tokenizers" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_tokenizing_does_not_import_transformers(vocabulary_file):
  """Importing it takes a second, and without PyTorch it prints a warning."""
  code = (
    'import sys; from ditsam_jax.tokenization import Tokenizer; '
    f'Tokenizer({str(vocabulary_file)!r}, 8)(["red"]); sys.exit("transformers" in sys.modules)'
  )
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
