"""The train command with prepared RefCOCO; without data or weights, it names the command to run."""

import dataclasses
import json
from pathlib import Path

import pytest

from ditsam_jax import prepare, train
from ditsam_jax.config import files, lengths, recipes
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import data_config, fresh_parts
from tests.data.refcoco_downloads import make
from tests.small_models import random_model, small_config

CONFIG = Path(__file__).parents[2] / 'configs' / 'ldit.py'


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  made = make(tmp_path_factory.mktemp('downloads')).write()
  prepare.main(made.arguments(made.root / 'data'))
  return made.root / 'data'


@pytest.mark.slow
def test_three_steps_from_a_converted_model(data_dir, vocabulary_file, tmp_path):
  model = small_config()
  model = dataclasses.replace(
    model,
    text_encoder=dataclasses.replace(model.text_encoder, vocab_size=40),
    image_encoder=dataclasses.replace(model.image_encoder, depth=1, global_blocks=(0,)),
    mask_decoder=dataclasses.replace(model.mask_decoder, depth=1),
  )
  fresh = ['text_encoder', 'text_proj']
  start = saved_model.save(tmp_path / 'start', random_model(model), vocabulary=vocabulary_file, fresh=fresh)
  config = files.load(
    str(CONFIG),
    [
      f'data.data_dir={data_dir}',
      f'init_from={start}',
      'data.batch_size=4',
      'data.augmentation.scale_steps=2',
      'data.threads=1',
      'eval_batch_size=4',
      'total_steps=3',
      'optimizer.warmup_steps=1',
      'log_every=1',
      'freeze=image_encoder,text_encoder',
    ],
  )  # a smaller program compiles faster
  config.model = recipes.as_config_dict(model)
  summary = train.train(config, tmp_path / 'run')
  assert summary['steps'] == 3 and summary['split'] == 'val'
  losses = [json.loads(line) for line in (tmp_path / 'run' / 'train_log.jsonl').read_text().splitlines()]
  assert len([line for line in losses if 'train/loss' in line]) == 3
  assert (tmp_path / 'run' / 'model' / 'vocab.txt').read_bytes() == vocabulary_file.read_bytes()
  assert data_config(tmp_path / 'run') == {'dataset': 'refcoco'}
  assert fresh_parts(tmp_path / 'run') == ['text_encoder']  # frozen, so still untrained


@pytest.mark.parametrize(
  'choice, options',
  [
    ('refcoco', '--dataset=refcoco --split-by=unc'),
    ('refcoco+', r'--dataset=refcoco\+ --split-by=unc'),
    ('refcocog', '--dataset=refcocog --split-by=umd'),
    ('grefcoco', '--dataset=grefcoco --split-by=unc'),
  ],
)
def test_without_data_the_prepare_command_is_named(tmp_path, choice, options):
  with pytest.raises(UserError, match=f'python -m ditsam_jax.prepare {options} .*--data-dir={tmp_path}') as error:
    train.main([f'--config={CONFIG}:{choice}', f'--workdir={tmp_path / "run"}', f'--config.data.data_dir={tmp_path}'])
  assert '\n' not in str(error.value) and not (tmp_path / 'run').exists()


def test_epochs_are_those_of_the_prepared_data(data_dir):
  source = datasets.open_split('refcoco', data_dir, 'train')
  config = files.load('ldit', [f'data.data_dir={data_dir}', 'data.batch_size=2', 'final_split=val'])
  assert datasets.size('refcoco', data_dir, 'train')[:2] == (source.num_images, len(source))
  resolved = lengths.resolve(config, lambda: lengths.samples_without_data(config))
  assert resolved.total_steps == 40 * -(-len(source) // 2) < 40 * 663


def test_an_unprepared_split_is_refused_before_training(data_dir, tmp_path):
  arguments = [f'--config.data.data_dir={data_dir}', '--config.final_split=testB', '--config.init_from=shapes']
  with pytest.raises(UserError, match="has no split 'testB'; choose one of"):
    train.main(['--config=ldit', f'--workdir={tmp_path / "run"}', *arguments])
  assert not (tmp_path / 'run').exists()


def test_without_a_text_encoder_the_convert_command_is_named(data_dir, tmp_path):
  with pytest.raises(UserError, match='python convert/torch_to_flax.py .*--config.init_from=models/start'):
    train.main(
      [
        f'--config={CONFIG}',
        f'--workdir={tmp_path / "run"}',
        f'--config.data.data_dir={data_dir}',
        '--config.init_from=',
      ]
    )
  assert not (tmp_path / 'run').exists()


def test_unknown_splits_and_partitions_are_named(data_dir):
  with pytest.raises(UserError, match="split 'test' is unknown; refcoco .unc. has train, val, testA, testB"):
    datasets.open_split('refcoco', data_dir, 'test')
  with pytest.raises(UserError, match="not split by 'umd'"):
    datasets.open_split('refcoco/umd', data_dir, 'val')
  with pytest.raises(UserError, match='--dataset=refcoco --split-by=google'):
    datasets.open_split('refcoco/google', data_dir, 'val')
  with pytest.raises(UserError, match='no split.*testB'):  # the data set is incomplete
    datasets.open_split('refcoco', data_dir, 'testB')
