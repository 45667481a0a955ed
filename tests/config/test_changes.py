"""Command-line changes are applied, and invalid ones refused in one line."""

import pytest

from ditsam_jax.config import files
from ditsam_jax.config.checks import model_config
from ditsam_jax.errors import UserError
from ditsam_jax.training.program import attention_for


def refusal(*overrides, config='ldit'):
  """The one-line error of `load`."""
  with pytest.raises(UserError) as error:
    files.load(config, list(overrides))
  assert '\n' not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(
  'override, field, value',
  [
    ('total_steps=3000', 'total_steps', 3000),
    ('optimizer.learning_rate=1e-3', 'optimizer.learning_rate', 1e-3),
    ('optimizer.learning_rate=1', 'optimizer.learning_rate', 1.0),
    ('optimizer.clip_norm=0', 'optimizer.clip_norm', 0.0),
    ('data.data_dir=/some/where=else', 'data.data_dir', '/some/where=else'),
    ('data.dataset=refcocog/google', 'data.dataset', 'refcocog/google'),
    ('init_from=', 'init_from', ''),
    ('seed=7', 'seed', 7),
    ('scan=False', 'scan', False),
    ('mesh.data=-1', 'mesh.data', -1),
    ('eval_every=None', 'eval_every', None),
    ('model.image_encoder.global_blocks=[1, 2]', 'model.image_encoder.global_blocks', [1, 2]),
    ('model.image_encoder.global_blocks=(1, 2)', 'model.image_encoder.global_blocks', [1, 2]),
  ],
)
def test_changes_are_applied(override, field, value):
  node = files.load('ldit', [override])
  for name in field.split('.'):
    node = node[name]
  assert node == value and type(node) is type(value)


def test_optional_groups_can_be_set_to_none():
  config = files.load('ldit:shapes', ['task=prompts', 'model.fusion=none', 'model.text_encoder=None'])
  assert model_config(config).text_encoder is None
  assert 'config.model.text_encoder is None' in refusal('model.text_encoder.depth=1', config='sam_pretrain')


@pytest.mark.parametrize(
  'override, expected',
  [
    ('optimizer.learnin_rate=1', ['config.optimizer', "'learnin_rate'", "'learning_rate'", 'warmup_steps']),
    ('optimiser.learning_rate=1', ['config', "'optimiser'", "'optimizer'"]),
    ('model.image_encoder.widht=1', ['config.model.image_encoder', "'widht'", "did you mean 'width'"]),
    ('total_steps.more=1', ['config.total_steps', "'more'"]),
    ('.=1', ["config has no field ''"]),
    ('=1', ["config has no field ''"]),
    ('total_steps=many', ['config.total_steps', "'many'", 'a whole number from 1']),
    ('total_steps=1.5', ['config.total_steps', '1.5']),
    ('total_steps=0', ['config.total_steps', '0']),
    ('total_steps', ['config.total_steps', 'VALUE']),
    ('optimizer=adam', ['config.optimizer', 'group', 'learning_rate']),
    ('optimizer=None', ['config.optimizer', 'group', 'learning_rate']),
    ('optimizer.name=sgd', ['config.optimizer.name', 'sgd', 'adam']),
    ('optimizer.name=adamm', ["did you mean 'adam'?"]),
    ('optimizer.learning_rate=-1.0', ['config.optimizer.learning_rate', '-1.0']),
    ('optimizer.warmup_steps=99999', ['config.optimizer.warmup_steps', '99999', 'total_steps (10)']),
    ('data.batch_size=0', ['config.data.batch_size', '0']),
    ('ema=1.0', ['config.ema', '1.0']),
    ('task=boxes', ['config.task', 'boxes', 'prompts']),
    ('final_split=testC', ['config.final_split', 'testC', 'train, val, testA, testB']),
    ('final_split=test', ['config.final_split', "'test'", 'refcoco (unc) has train, val, testA, testB']),
    ('data.dataset=coco', ['config.data.dataset', "'coco'", 'refcoco+']),
    ('data.dataset=shapes/unc', ['config.data.dataset', 'shapes/unc']),
    ('model.fusion=layer', ['config.model.fusion', 'layer', 'layer_wise']),
    ('model.image_size=100', ['config.model.image_size', '100', '16']),
    ('attention=fast', ["'fast'", 'auto, reference, xla, cudnn, pallas_tpu, pallas_gpu']),
    ('model.text_encoder=None', ['model.fusion', 'no text encoder']),
    ('model.mask_threshold=-3', ['config.model.mask_threshold is -3', 'above 0 and below 1']),
    ('model.pixel_std=[0, 1, 1]', ['config.model.pixel_std is [0, 1, 1]', 'a list of 3']),
    ('model.pixel_mean=0.5', ['config.model.pixel_mean is 0.5', 'a list of 3']),
    ('model.text_encoder.dropout=-1', ['config.model.text_encoder.dropout is -1', 'from 0 to below 1']),
    ('model.fusion_dropout=1', ['config.model.fusion_dropout is 1']),
    ('model.image_encoder.width=1000000', ['config.model.image_encoder.width is 1000000', '8,192']),
    ('model.image_encoder.depth=100000', ['config.model.image_encoder.depth is 100000', '128']),
    ('model.image_encoder.patch_size=0', ['config.model.image_encoder.patch_size is 0']),
    ('model.image_size=8192', ['512 patches of 16 per side', 'at most 512'] and ['model']),
    ('optimizer.beta1=2', ['config.optimizer.beta1 is 2', 'from 0 to below 1']),
    ('optimizer.beta2=nan', ["config.optimizer.beta2 is 'nan'"]),
    ('optimizer.clip_norm=-1', ['config.optimizer.clip_norm is -1']),
    ('optimizer.learning_rate=1e300', ['config.optimizer.learning_rate is 1e+300']),
    ('optimizer.learning_rate=1e999', ['config.optimizer.learning_rate is inf']),
    ('optimizer.learning_rate=None', ['config.optimizer.learning_rate is None']),
    ('optimizer.learning_rate=True', ['config.optimizer.learning_rate is True']),
    ('seed=None', ['config.seed is None']),
    ('seed=True', ['config.seed is True']),
    ('seed=-1', ['config.seed is -1']),
    ('seed=' + '9' * 5000, ['config.seed is']),
    ('seed=' + '[' * 5000, ['config.seed is']),
    ('scan=1', ['config.scan is 1', 'True or False']),
    ('freeze=(', ['config.freeze', 'regular expression']),
    ('freeze=a\nb', ['config.freeze']),
    ('data.threads=1000', ['config.data.threads is 1000', '256']),
    ('data.processes=1000', ['config.data.processes is 1000', 'from 0 to 64']),
    ('data.processes=-1', ['config.data.processes is -1']),
    ('data.data_dir=s3://bucket/data', ['config.data.data_dir', 's3:// is not supported', 's3fs']),
    ('init_from=s3://bucket/model', ['config.init_from', 's3:// is not supported']),
    ('data.augmentation.flip_probability=2', ['config.data.augmentation.flip_probability is 2', 'from 0 to 1']),
    ('data.augmentation.scale_steps=100', ['augmentation: 100 scales']),
    ('mesh.fsdp=0', ['config.mesh.fsdp is 0', 'or -1']),
    ('loss.bce=0', ['config.loss.bce, dice and iou are all 0']),
    ('epochs=0', ['config.epochs is 0']),
    ('rounds=4', ['config.rounds is 4; expected 1', 'config.task=interactive']),
    ('first_prompts.box_jitter=0.3', ["config.first_prompts is {...}; expected its default for task 'text'"]),
    (
      'optimizer.learning_rate=5e-7',
      ['config.optimizer.min_learning_rate is 1e-06; expected at most the peak', '5e-07'],
    ),
    ('optimizer.warmup_start=1', ['config.optimizer.warmup_start is 1', 'at most the peak']),
    ('model.max_text_tokens=2', ['config.model.max_text_tokens is 2']),
    ('epochs=None', ['config.total_steps is None']),
  ],
)
def test_invalid_changes_are_refused(override, expected):
  overrides = ['total_steps=10', override] if 'warmup' in override else [override]
  if override == 'model.image_size=8192':
    overrides += ['model.image_encoder.patch_size=8']
    expected = ['1024 patches of 8 per side', 'at most 512']
  message = refusal(*overrides)
  assert all(part in message for part in expected), message
  assert len(message) < 400


def test_scenes_are_for_shapes_only():
  assert 'scenes apply to shapes only' in refusal('data.dataset=refcoco', 'final_split=val', config='ldit:shapes')
  assert 'config.data.scenes is None' in refusal('data.scenes.train=3')
  assert 'scenes: min_shapes is 9' in refusal('data.scenes.min_shapes=9', config='ldit:shapes')


def test_clicks_need_data_in_which_every_mask_is_an_object():
  assert 'dataset is grefcoco; expected data in which every mask is one object' in refusal(
    'task=prompts', 'init_from=', config='ldit:grefcoco'
  )


def test_phrases_are_refused_where_no_sentence_is_read():
  assert refusal('data.scenes.phrases_per_scene=3', config='sam_pretrain') == (
    "config.data.scenes.phrases_per_scene is 3; expected 0 for task 'prompts': phrases name several shapes or none, "
    'and are not read'
  )
  assert 'absent_per_scene is 2; expected 0' in refusal('data.scenes.absent_per_scene=2', config='sam_pretrain')
  assert files.load('ldit:shapes', ['data.scenes.phrases_per_scene=3']).data.scenes.phrases_per_scene == 3


def test_an_unsupported_attention_is_refused():
  config = files.load('ldit', ['attention=pallas_tpu'])
  model = model_config(config)
  assert attention_for(config.attention, model, 'tpu', 'float32') == 'pallas_tpu'
  with pytest.raises(UserError, match="config.attention is 'pallas_tpu': it runs on tpu, this is cpu; 'auto'"):
    attention_for(config.attention, model, 'cpu', 'float32')
