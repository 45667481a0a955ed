"""A config can take its model from the model that training starts from, and must not contradict its weights."""

import dataclasses

import pytest

from ditsam_jax.config import checks, files, named
from ditsam_jax.config.checks import model_config
from ditsam_jax.config.start import check_changes
from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_config
from tests.small_models import random_model, small_config


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """Returns a run's workdir whose model fixes the number of tokens."""
  workdir = tmp_path_factory.mktemp('run')
  saved_model.save(workdir / 'model', random_model(small_config(fusion='token_layer_wise')))
  return str(workdir)


def finetuned(init_from, *changes):
  return files.load('finetune:shapes', [f'init_from={init_from}', *changes])


def refusal(init_from, *changes):
  with pytest.raises(UserError) as error:
    finetuned(init_from, *changes)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_the_model_is_that_of_the_start(workdir):
  assert model_config(finetuned('shapes')) == read_config('shapes')
  assert model_config(finetuned(workdir)) == small_config(fusion='token_layer_wise')


def test_a_config_without_a_model_is_completed_by_check():
  """Notebooks use configs without loading a file."""
  config = named('finetune', 'shapes')
  assert config.model is None
  config.init_from = 'shapes'
  assert checks.check(config).model == read_config('shapes')


def test_any_recipe_can_use_the_model_of_its_start():
  config = files.load('edit:refcoco', ['model=None', 'init_from=shapes', 'data.augmentation.scale_steps=1'])
  assert model_config(config) == read_config('shapes')


def test_fields_that_fit_any_weights_may_change():
  changes = ['model.max_text_tokens=20', 'model.image_size=160', 'model.mask_threshold=0.4']
  model = model_config(finetuned('shapes', *changes, 'model.text_encoder.dropout=0.2'))
  changed = dataclasses.replace(read_config('shapes'), max_text_tokens=20, image_size=160, mask_threshold=0.4)
  assert dataclasses.replace(model, text_encoder=changed.text_encoder) == changed
  assert model.text_encoder.dropout == 0.2


@pytest.mark.parametrize(
  'change, value, there',
  [
    ('text_encoder.width=64', 64, 96),
    ('text_encoder.heads=6', 6, 3),  # its weights have the same shapes
    ('text_encoder.vocab_size=30522', 30522, 640),
    ('text_encoder=None', None, "'{...}'"),
    ('image_encoder.depth=12', 12, 6),
    ('image_encoder.global_blocks=[0]', (0,), (0, 1, 2, 3, 4, 5)),
    ('mask_decoder.depth=4', 4, 2),
    ('fusion=e2e', "'e2e'", "'layer_wise'"),
  ],
)
def test_other_changes_are_refused_with_the_flag(change, value, there):
  flag = f'config.model.{change.partition("=")[0]}'
  message = refusal('shapes', f'model.{change}')
  assert message == (
    f"{flag} is {value}; config.init_from='shapes' does not fit config.model: it has {there}, which cannot change; "
    f'leave out --{flag}, or pass --config.model=None to take its model as it is'
  )


def test_token_wise_weights_fix_the_number_of_tokens(workdir):
  assert 'config.model.max_text_tokens is 8' in refusal(workdir, 'model.max_text_tokens=8')


@pytest.mark.parametrize(
  'init_from, message',
  [
    ('', "config.init_from is ''"),
    ('nowhere', "config.init_from: checkpoint 'nowhere' does not exist"),
    ('sam_shapes', "config.model.text_encoder is None (init_from='sam_shapes' takes no text)"),
  ],
)
def test_a_start_without_a_model_or_text_encoder_is_refused(init_from, message):
  assert message in refusal(init_from)


def test_a_recipe_with_its_own_model_may_only_extend_the_start():
  plain = dataclasses.asdict(models.tiny())
  check_changes(plain, 'sam_shapes', whole=False)  # has no text encoder
  plain['mask_decoder']['depth'] = 4
  check_changes(plain, 'sam_shapes', whole=False)
  plain['image_encoder']['heads'] = 6
  with pytest.raises(UserError, match='config.model.image_encoder.heads is 6'):
    check_changes(plain, 'sam_shapes', whole=False)


def test_adding_words_requires_a_start_with_a_text_encoder():
  with pytest.raises(UserError, match="config.data.add_words is leaf; expected '' unless config.init_from names"):
    files.load('ldit:shapes', ['init_from=', 'data.add_words=leaf'])
