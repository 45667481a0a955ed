"""Config files and changes from the command line: what they say arrives, what cannot be is refused in one line."""

from pathlib import Path

import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models
from ditsam_jax.training.config import attention_for, load, model_config

CONFIGS = Path(__file__).parents[2] / 'configs'
LDIT = str(CONFIGS / 'ldit.py')


def refusal(argument=LDIT, *overrides):
  """The one line that `load` refuses with."""
  with pytest.raises(UserError) as error:
    model_config(load(argument, list(overrides)))
  assert '\n' not in str(error.value)
  return str(error.value)


def test_the_release_recipe():
  """Section 'training recipe' of the release: the numbers that its code runs with."""
  config = load(LDIT, [])
  assert model_config(config) == models.vit_b()
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (
    'adam',
    1e-4,
    0.9,
    0.98,
    1e-9,
  )
  assert (optimizer.warmup_start, optimizer.min_learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (
    1e-7,
    1e-6,
    0.0,
    0.15,
  )
  assert config.data.batch_size == 64 and config.ema == 0.9997
  assert config.loss.to_dict() == dict(bce=1.0, dice=0.0, iou=0.0)
  assert (optimizer.warmup_steps, config.total_steps) == (3 * 663, 40 * 663)  # 42,404 objects by 64
  assert config.freeze == ''


@pytest.mark.parametrize('file', sorted(path.name for path in CONFIGS.glob('*.py')))
@pytest.mark.parametrize('data_set', ['', ':shapes', ':refcocog'])
def test_every_config_file_describes_a_model(file, data_set):
  if file == 'sam_pretrain.py' and data_set != ':shapes':
    pytest.skip('is of shapes alone')
  config = load(f'{CONFIGS / file}{data_set}', [])
  assert model_config(config).text_encoder is not None or config.task == 'prompts'


@pytest.mark.parametrize(
  'file, epochs',
  [
    ('sam_text', 25),
    ('sam_text_add_2', 25),
    ('sam_text_add_4', 25),
    ('ldit_frozen_text', 25),
    ('cross_attention', 25),
    ('ldit_vith', 25),
    ('edit', 40),
    ('ldit_token', 40),
    ('edit_token', 40),
  ],
)
def test_the_releases_epochs(file, epochs):
  assert load(f'{CONFIGS / file}.py:refcocog', []).total_steps == epochs * 660  # 42,226 objects by 64


@pytest.mark.parametrize(
  'override, field, value',
  [
    ('total_steps=3000', 'total_steps', 3000),
    ('optimizer.learning_rate=1e-3', 'optimizer.learning_rate', 1e-3),
    ('optimizer.learning_rate=1', 'optimizer.learning_rate', 1.0),
    ('data.data_dir=/some/where=else', 'data.data_dir', '/some/where=else'),
    ('init_from=', 'init_from', ''),
    ('model.image_encoder.global_blocks=[1, 2]', 'model.image_encoder.global_blocks', [1, 2]),
  ],
)
def test_changes_arrive(override, field, value):
  node = load(LDIT, [override])
  for name in field.split('.'):
    node = node[name]
  assert node == value


def test_a_group_can_be_taken_away():
  config = load(f'{CONFIGS / "ldit.py"}:shapes', ['task=prompts', 'model.fusion=none', 'model.text_encoder=None'])
  assert model_config(config).text_encoder is None


@pytest.mark.parametrize(
  'override, told',
  [
    ('optimizer.learnin_rate=1', ['config.optimizer', "'learnin_rate'", "'learning_rate'", 'warmup_steps']),
    ('optimiser.learning_rate=1', ['config', "'optimiser'", "'optimizer'"]),
    ('total_steps.more=1', ['config.total_steps', "'more'"]),
    ('total_steps=many', ['config.total_steps', "'many'"]),
    ('total_steps=1.5', ['config.total_steps', '1.5']),
    ('total_steps=0', ['config.total_steps', '0']),
    ('total_steps', ['config.total_steps', 'VALUE']),
    ('optimizer=adam', ['config.optimizer', 'group', 'learning_rate']),
    ('optimizer.name=sgd', ['config.optimizer.name', 'sgd', 'adam']),
    ('optimizer.learning_rate=-1.0', ['config.optimizer.learning_rate', '-1.0']),
    ('optimizer.warmup_steps=99999999', ['config.optimizer.warmup_steps', '99999999', 'total_steps']),
    ('data.batch_size=0', ['config.data.batch_size', '0']),
    ('ema=1.0', ['config.ema', '1.0']),
    ('task=boxes', ['config.task', 'boxes', 'prompts']),
    ('final_split=testC', ['config.final_split', 'testC']),
    ('model.fusion=layer', ['model.fusion', 'layer', 'layer_wise']),
    ('model.image_size=100', ['model.image_size', '100', '16']),
    ('attention=fast', ['config.attention', "'fast'", 'auto, reference, xla, cudnn, pallas_tpu, pallas_gpu']),
    ('model.text_encoder=None', ['config.model.text_encoder', 'text encoder']),
  ],
)
def test_impossible_changes_are_refused(override, told):
  message = refusal(LDIT, override)
  assert all(part in message for part in told), message


def test_an_attention_that_cannot_run_here_is_refused():
  config = load(LDIT, ['attention=pallas_tpu'])
  model = model_config(config)
  assert attention_for(config.attention, model, 'tpu', 'float32') == 'pallas_tpu'
  with pytest.raises(UserError, match="config.attention is 'pallas_tpu': it runs on tpu, this is cpu; 'auto'"):
    attention_for(config.attention, model, 'cpu', 'float32')


def test_a_missing_file_is_named_with_those_there():
  message = refusal(str(CONFIGS / 'lditt.py'))
  assert 'lditt.py' in message and 'ldit.py' in message and 'edit.py' in message


def test_an_unknown_data_set_is_named_with_the_known():
  message = refusal(LDIT + ':coco')
  assert "'coco'" in message and 'refcoco+' in message
