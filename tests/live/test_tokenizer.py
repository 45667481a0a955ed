"""The tokenizer in JavaScript gives the ids of transformers' BertTokenizer."""

import json
import random

import pytest

from ditsam_jax.storage.places import SHIPPED
from ditsam_jax.tokenization import Tokenizer

transformers = pytest.importorskip('transformers')

SENTENCES = 10_000
ALPHABETS = {
  'English': 'abcdefghijklmnopqrstuvwxyz' * 3 + 'ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789',
  'accents': 'àáâãäåæçèéêëìíîïñòóôõöøùúûüýÿßÀÉÎÕÜŸŁłŞşİıǅǆșțễấợẞﬁﬂÅK',
  'marks': 'aeiou\u0300\u0301\u0302\u0303\u0308\u030a\u0327\u0328\u0338\u20dd\u0915\u093e\u094d',
  'Greek and Cyrillic': 'αβγδεςσΣΑΩάέήίόύώΰΐЖжЁёйЙЇїщъ',
  'other scripts': 'אבגדשׁכּםىيكعربיةกขคิ์한국어カタガひらがなーაბგдҢ',
  'Chinese': '中文大小的红色圆形左边第二个三角㐀䶵豈﨩'
  + ''.join(map(chr, (0x20000, 0x2A6D6, 0x2A700, 0x2B740, 0x2B820, 0x2F800))),
  'punctuation': '.,;:!?\'"()[]{}<>-–—_/\\|@#$%^&*+=~`§¶«»“”‘’…·¡¿、。「」・‰′″€£¥©®°±×÷¬½²',
  'spaces': ' \t\n\r\u00a0\u2003\u2009\u200a\u2028\u202f\u3000\u0085',
  'controls': '\0\x01\x07\x1b\x7f\x80\x9f\ufffd\u00ad\u200b\u200c\u200d\u200e\u202e\u2060\ufeff\ue000',
  'emoji': '😀🎈🔴🟦⭐❤️👩\u200d🚀🏳️\u200d🌈🇫🇷👍🏽☎',
}
TOKENS = 40


def pieces(chance):
  """A vocabulary of words, parts of words and single characters, with gaps."""
  found = {'[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'}
  for alphabet in ALPHABETS.values():
    letters = transformers_words(alphabet)
    for _ in range(400):
      piece = ''.join(chance.choices(letters, k=chance.randint(1, 4)))
      found.add(chance.choice(['', '##']) + piece)
  special = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]']
  return special + sorted(found - set(special))


def transformers_words(alphabet):
  """The characters of an alphabet that can be in a vocabulary."""
  return [letter for letter in alphabet.lower() if letter.isprintable() and not letter.isspace()] or ['a']


def sentence(chance, known):
  """Words of one or several alphabets, known pieces, special tokens, and words of over 100 characters."""
  words = []
  for _ in range(chance.randint(0, 9)):
    kind = chance.random()
    if kind < 0.25:
      words.append(''.join(piece.removeprefix('##') for piece in chance.choices(known, k=chance.randint(1, 3))))
    elif kind < 0.28:
      words.append(chance.choice(['[MASK]', '[CLS]', '[UNK]', '[mask]', '[PAD]x', 'a[SEP]b']))
    elif kind < 0.3:
      words.append(chance.choice('ab中') * chance.randint(99, 102))
    else:
      alphabets = chance.choices(list(ALPHABETS.values()), k=chance.choice([1, 1, 1, 2, 4]))
      words.append(''.join(chance.choice(chance.choice(alphabets)) for _ in range(chance.randint(1, 12))))
  return chance.choice([' ', ' ', '  ', '']).join(words)


def in_javascript(page, vocabulary, tokens, texts, method):
  return json.loads(
    page.evaluate(
      """async ([vocabulary, tokens, texts, method]) => {
        const { Tokenizer } = await import('/tokenizer.js');
        const tokenizer = new Tokenizer(vocabulary, tokens);
        return JSON.stringify(texts.map((text) => tokenizer[method](text)));
      }""",
      [vocabulary, tokens, texts, method],
    )
  )


@pytest.mark.slow
@pytest.mark.verifies(
  "Token ids of the live page's tokenizer, for 10,000 sentences in many scripts",
  against="transformers' BertTokenizer",
  within='exact',
)
def test_ids_equal_those_of_transformers(modules, tmp_path):
  chance = random.Random(0)
  known = pieces(chance)
  vocabulary = '\n'.join(known) + '\n'
  (tmp_path / 'vocab.txt').write_text(vocabulary, encoding='utf-8', newline='\n')
  texts = [sentence(chance, known) for _ in range(SENTENCES)]
  theirs = transformers.BertTokenizer(str(tmp_path / 'vocab.txt'), do_lower_case=True)
  expected = theirs(texts, padding='max_length', truncation=True, max_length=TOKENS)
  found = in_javascript(modules, vocabulary, TOKENS, texts, 'encode')
  wrong = [text for text, ours, ids in zip(texts, found, expected['input_ids']) if ours['ids'] != ids]
  assert not wrong, (len(wrong), wrong[:3])
  assert [row['mask'] for row in found] == expected['attention_mask']
  used = {index for row in expected['input_ids'] for index in row}
  assert len(used) > 500 and sum(1 in row for row in expected['input_ids']) > 1000  # many pieces, and unknown words


@pytest.mark.slow
def test_unknown_and_cut_words_are_those_of_the_python_tokenizer(modules):
  file = SHIPPED / 'shapes' / 'vocab.txt'
  ours = Tokenizer(file, 12)
  texts = [
    'the red circle',
    'the zebra on qzx the Zebra',
    'The  LARGE,red circle!',
    'éclair the rëd circle',
    '中 the 😀 star',
    'the second star from the left of the blue square that is not the red triangle below',
    'the second star from the left of the blue square that is not zebra zebra',
    '',
    'x',
  ]
  for text, found in zip(texts, in_javascript(modules, file.read_text(), 12, texts, 'check')):
    assert (found['unknown'], found['cut']) == (ours.unknown(text), ours.cut(text)), text
    assert [tuple(place) for place in found['places']] == ours.unknown_places(text), text
