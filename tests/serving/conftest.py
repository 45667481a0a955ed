"""A small model and a service for it, shared by all tests of the service."""

import pytest

from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.tokenization import Tokenizer
from tests.browsing import SIZES
from tests.fuzz.seeds import WORDS, text_config
from tests.serving.running import running
from tests.small_models import random_model


@pytest.fixture(scope='session')
def segmenter(tmp_path_factory):
  vocabulary = tmp_path_factory.mktemp('words') / 'vocab.txt'
  vocabulary.write_text('\n'.join(WORDS) + '\n')
  config = text_config()
  return Segmenter.from_model(random_model(config), Tokenizer(vocabulary, config.max_text_tokens), batch_size=4)


@pytest.fixture(scope='session')
def live(segmenter):
  with running(segmenter, Limits(seconds=300)) as found:  # programs are compiled on first use
    yield found


@pytest.fixture
def client(live):
  found = live.client()
  yield found
  found.close()


@pytest.fixture(scope='module', params=SIZES)
def size(request):
  return request.param


@pytest.fixture
def page(browser, live, size):
  from tests.serving import pages  # skips where there is no browser

  found = pages.opened(browser, live.port, **SIZES[size])
  pages.said(found, 'Ready.')
  yield found
  found.context.close()
  assert found.wrong == []
