"""New words get their own pieces and rows; existing ones stay bit-identical."""

from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data.datasets import SHAPES
from ditsam_jax.errors import UserError
from ditsam_jax.tokenization import Tokenizer
from ditsam_jax.training import words

BERT = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'cup', 'left', 'of', 'es', '##press', '##o', 'a', '##b']


class Source:
  """A split as used by `unknown_words`."""

  def __init__(self, *images):
    self._images = images
    self.num_images = len(images)

  def image(self, index):
    return Record(self._images[index])


class Record:
  def __init__(self, objects):
    self._objects = objects
    self.num_objects = len(objects)

  def expressions(self, index):
    return self._objects[index]


SOURCE = Source([('the Leaf', 'left of the café'), ()], [('the leaf under the ab, 3 m',)])


@pytest.fixture(params=['shapes', 'WordPiece'])
def tokenizer(request, tmp_path):
  if request.param == 'shapes':
    return Tokenizer(SHAPES.vocabulary, 12)
  (tmp_path / 'vocab.txt').write_text('\n'.join(BERT) + '\n')
  return Tokenizer(tmp_path / 'vocab.txt', 12)


def grown(tokenizer, new, tmp_path):
  file = Path(tmp_path) / 'grown.txt'
  file.write_text('\n'.join((*tokenizer.vocabulary, *new)) + '\n')
  return Tokenizer(file, 12)


def test_unknown_words_of_the_data_are_normalised_like_the_vocabulary(tokenizer):
  found = words.new_words('from-data', tokenizer, SOURCE)
  assert {'leaf', 'cafe', 'under'} <= set(found) and found == sorted(found)
  assert not {'the', 'left', 'Leaf', 'café', '', '[UNK]'} & set(found)


def test_named_words_are_added_unless_known(tokenizer):
  assert words.new_words(' Leaf,the , under', tokenizer, SOURCE) == ['leaf', 'under']
  assert 'espresso' in words.new_words('espresso,from-data', tokenizer, SOURCE)


@pytest.mark.parametrize(
  'asked, message',
  [
    ('traffic light', "'traffic light' is read as 2 words"),
    ('cup,x-ray', "'x-ray' is read as 3 words"),
    ('w' * 101, 'more than 100 characters'),
  ],
)
def test_entries_that_are_not_single_words_are_refused(tokenizer, asked, message):
  with pytest.raises(UserError, match='config.data.add_words: ') as error:
    words.new_words(asked, tokenizer, SOURCE)
  assert message in str(error.value)


def test_old_sentences_keep_their_tokens_and_new_words_are_one_piece_each(tokenizer, tmp_path):
  new = ['cafe', 'leaf', 'under']
  after = grown(tokenizer, new, tmp_path)
  sentences = ['the left of the', 'the a', 'left']
  np.testing.assert_array_equal(after(sentences)[0], tokenizer(sentences)[0])
  (ids,), _ = after(['under the CAFÉ leaf'])
  first = len(tokenizer.vocabulary)
  vocabulary = tokenizer.vocabulary
  assert ids[:6].tolist() == [vocabulary['[CLS]'], first + 2, vocabulary['the'], first, first + 1, vocabulary['[SEP]']]
  assert after.unknown('under the café leaf') == []


def test_old_rows_are_bit_identical_and_new_ones_resemble_them(tokenizer):
  known, rng = len(tokenizer.vocabulary), np.random.default_rng(0)
  table = rng.normal(0.1, 0.02, (known + 2, 16)).astype(np.float32)  # the last two rows are unused
  after = words.table_with(table, ['cafe', 'leaf', 'under'], tokenizer, known + 3, seed=1)
  assert after.shape == (known + 3, 16) and after.dtype == np.float32
  assert after[:known].tobytes() == table[:known].tobytes()
  new = after[known:]
  assert len({row.tobytes() for row in new}) == 3 and not (new[:2] == table[known:]).any()
  assert abs(new.mean() - 0.1) < 0.02 and 0.01 < new.std() < 0.04
  again = words.table_with(table, ['cafe', 'leaf', 'under'], tokenizer, known + 3, seed=1)
  assert again.tobytes() == after.tobytes()


def test_a_word_split_into_pieces_starts_as_their_mean(tmp_path):
  (tmp_path / 'vocab.txt').write_text('\n'.join(BERT) + '\n')
  tokenizer = Tokenizer(tmp_path / 'vocab.txt', 12)
  table = np.random.default_rng(0).normal(size=(len(BERT), 8)).astype(np.float32)
  (row,) = words.table_with(table, ['espresso'], tokenizer, len(BERT) + 1, seed=0)[len(BERT) :]
  np.testing.assert_allclose(row, table[[BERT.index(piece) for piece in ('es', '##press', '##o')]].mean(0), rtol=1e-6)
