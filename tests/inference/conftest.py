"""Fixtures for inference: a tokenizer of a dozen words, and quicker compilation."""

import jax
import pytest

from ditsam_jax.tokenization import Tokenizer
from tests.inference.predictor_cases import WORDS


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  vocabulary = tmp_path_factory.mktemp('words') / 'vocab.txt'
  vocabulary.write_text('\n'.join(WORDS) + '\n')
  return Tokenizer(vocabulary, 6)


@pytest.fixture(scope='module')
def quick_compilation():
  """Disables XLA's optimisations, which halves the time of tests that mostly compile; results stay the same."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
