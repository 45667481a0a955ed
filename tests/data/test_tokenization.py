"""Ids as BERT counts them, against hand-made cases and the independent WordPiece class of `tokenizers`."""

import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tokenizers

from ditsam_jax import tokenization
from ditsam_jax.errors import UserError
from ditsam_jax.tokenization import Tokenizer

SENTENCES = ['the red box', 'Boxes, on the LEFT', 'a purple box', 'third box on the right of the green box', '']


def test_a_sentence_by_hand(tmp_path):
  file = tmp_path / 'vocab.txt'
  # The specials stand anywhere: their ids are read from the file, not assumed.
  file.write_text('[UNK]\n[CLS]\nbox\n##es\n[SEP]\nred\n[PAD]\n')
  ids, mask = Tokenizer(file, 7)(['Red boxes there', 'box'])
  assert ids.tolist() == [[1, 5, 2, 3, 0, 4, 6], [1, 2, 4, 6, 6, 6, 6]]
  assert mask.tolist() == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0, 0]]
  assert ids.dtype == mask.dtype == np.int32


def test_agrees_with_the_plain_wordpiece_tokenizer(vocabulary_file):
  plain = tokenizers.BertWordPieceTokenizer(str(vocabulary_file), lowercase=True)
  plain.enable_truncation(8)
  plain.enable_padding(length=8, pad_id=plain.token_to_id('[PAD]'))
  ids, mask = Tokenizer(vocabulary_file, 8)(SENTENCES)
  expected = plain.encode_batch(SENTENCES)
  assert ids.tolist() == [row.ids for row in expected]
  assert mask.tolist() == [row.attention_mask for row in expected]


def test_no_sentence_gives_no_row(vocabulary_file):
  ids, mask = Tokenizer(vocabulary_file, 8)([])
  assert ids.shape == mask.shape == (0, 8)


@pytest.mark.parametrize(
  'text, cut',
  [
    ('the red box', ''),  # 3 pieces in room for 3
    ('the red box on the Left', 'on the Left'),
    ('the red boxes', 'boxes'),  # 'box' would fit, 'boxes' does not
    ('the  red,  box  on', 'box  on'),
    ('', ''),
  ],
)
def test_cut_is_the_words_that_do_not_fit(vocabulary_file, text, cut):
  assert Tokenizer(vocabulary_file, 5).cut(text) == cut


def test_many_threads_get_the_answers_of_one(vocabulary_file):
  texts = [
    f'{a} {b} box on {c}' for a in 'a the red'.split() for b in 'green blue'.split() for c in 'left right'.split()
  ] * 20
  expected = Tokenizer(vocabulary_file, 8)(texts)[0]
  shared = Tokenizer(vocabulary_file, 8)
  with ThreadPoolExecutor(8) as pool:
    rows = list(pool.map(lambda text: (shared.cut(text), shared([text])[0][0])[1], texts))
  np.testing.assert_array_equal(rows, expected)


def test_every_sentence_is_tokenised_once_however_many_threads_ask(vocabulary_file, monkeypatch):
  asked, plain = [], tokenization._bert_tokenizer

  def noted(vocabulary):
    bert = plain(vocabulary)
    return lambda text, **options: asked.append(text) or bert(text, **options)

  monkeypatch.setattr(tokenization, '_bert_tokenizer', noted)
  tokenizer = Tokenizer(vocabulary_file, 8)
  with ThreadPoolExecutor(8) as pool:
    list(pool.map(tokenizer, [SENTENCES] * 40))
  assert sorted(asked) == sorted(SENTENCES)


def test_a_copy_in_another_process_gives_the_same_ids(vocabulary_file):
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


def test_importing_the_module_leaves_the_slow_library_alone():
  code = 'import sys, ditsam_jax.tokenization; sys.exit("transformers" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0
