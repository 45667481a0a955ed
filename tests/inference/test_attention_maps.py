"""Attention maps of a sentence on an image."""

import dataclasses

import numpy as np
import pytest

import ditsam_jax
from tests.inference.predictor_cases import WORDS
from tests.small_models import random_model, small_config


def segmenter_of(tokenizer, **changes):
  config = small_config(**changes)
  text = dataclasses.replace(config.text_encoder, vocab_size=len(WORDS))
  return ditsam_jax.Segmenter.from_model(random_model(dataclasses.replace(config, text_encoder=text)), tokenizer)


@pytest.fixture(scope='module')
def maps(tokenizer, quick_compilation):
  image = np.random.default_rng(0).integers(0, 256, (32, 64, 3)).astype(np.uint8)
  return ditsam_jax.attention_maps(segmenter_of(tokenizer), image, ' '.join(WORDS[5:7]))


def test_every_slot_has_its_word_and_shares_of_a_softmax(maps):
  assert maps.tokens == ('[CLS]', *WORDS[5:7], '[SEP]', '[PAD]', '[PAD]')
  assert maps.from_text.shape == (2, 2, 6, 4, 4) and maps.to_text.shape == (2, 2, 4, 4, 6)
  for sums in (maps.from_text.sum((-2, -1)), maps.to_text.sum(-1)):
    assert (sums > 0).all() and (sums < 1).all()


def test_a_map_is_resized_to_the_image_without_the_padding_of_the_square(maps):
  grid = np.arange(4.0)[:, None] + np.zeros((4, 4))  # the image of 32 x 64 covers rows 1 and 2
  found = maps.at_image_size(grid)
  assert found.shape == (32, 64)
  np.testing.assert_allclose(found[:, 0], (np.arange(32) + 16.5) / 16 - 0.5, atol=1e-5)


@pytest.mark.parametrize('changes, message', [({'fusion': 'none'}, "fusion is 'none'")])
def test_models_whose_encoder_does_not_read_the_text_are_refused(tokenizer, changes, message):
  with pytest.raises(ditsam_jax.UserError, match=message):
    ditsam_jax.attention_maps(segmenter_of(tokenizer, **changes), np.zeros((8, 8, 3), np.uint8), WORDS[5])


def test_a_prompt_is_no_sentence(tokenizer):
  """Its points and its box would be ignored."""
  prompt = ditsam_jax.Prompt(WORDS[5], points=[[1, 1]])
  with pytest.raises(ditsam_jax.UserError, match='a text of type Prompt: expected words'):
    ditsam_jax.attention_maps(segmenter_of(tokenizer), np.zeros((8, 8, 3), np.uint8), prompt)
