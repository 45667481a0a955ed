"""The text encoder agrees with transformers.BertModel, padding included (tests/golden/make_fixtures.py)."""

import jax
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.config import TextEncoderConfig
from ditsam_jax.models.text_encoder import TextEncoder
from tests.small_models import call, golden_arrays, load_release

CONFIG = TextEncoderConfig(vocab_size=30, width=24, depth=2, heads=3, mlp_width=40, max_positions=16)


@pytest.fixture(scope='module')
def bert():
  return golden_arrays('bert')


@pytest.fixture(scope='module')
def encoder(bert):
  encoder = TextEncoder(CONFIG, rngs=nnx.Rngs(0))
  tensors = {
    name.replace('weights/', 'lang_encoder.bert.'): value for name, value in bert.items() if name.startswith('weights/')
  }
  assert not load_release(encoder, tensors, prefix='text_encoder.')
  encoder.eval()
  return encoder


@pytest.mark.slow
@pytest.mark.verifies('The text encoder on padded sentences', against="transformers' BertModel", within='2e-5')
def test_states_of_padded_sentences(encoder, bert):
  states = call(encoder, bert['token_ids'], bert['token_mask'])
  np.testing.assert_allclose(states, bert['states'], atol=2e-5)


@pytest.mark.slow
@pytest.mark.verifies("The gradient of the text encoder's word table", against="transformers' BertModel", within='1e-3')
def test_gradient_of_the_word_table(encoder, bert):
  """Includes the row of [PAD], for which BertModel gives no gradient."""

  def loss(encoder):
    return (encoder(bert['token_ids'], bert['token_mask']) * bert['probe']).sum()

  gradient = nnx.jit(nnx.grad(loss))(encoder).embeddings.word_embeddings.embedding[...]
  np.testing.assert_allclose(gradient, bert['word_gradient'], atol=1e-3)


@pytest.mark.slow
def test_padding_does_not_affect_other_states(encoder, bert):
  ids, mask = bert['token_ids'][1:2], bert['token_mask'][1:2]
  length = int(mask.sum())
  padded, short = call(encoder, ids, mask), call(encoder, ids[:, :length], mask[:, :length])
  np.testing.assert_allclose(padded[:, :length], short, atol=1e-5)


@pytest.mark.slow
def test_dropout_is_active_in_train_mode_and_determined_by_its_key(encoder, bert):
  encoder = nnx.clone(encoder)
  ids, mask = bert['token_ids'], bert['token_mask']
  plain = call(encoder, ids, mask)
  encoder.train()
  one, same, other = (call(encoder, ids, mask, rngs=nnx.Rngs(dropout=jax.random.key(seed))) for seed in (0, 0, 1))
  np.testing.assert_array_equal(one, same)
  assert np.abs(one - other).max() > 0.1
  encoder.eval()
  np.testing.assert_array_equal(call(encoder, ids, mask), plain)
