"""The evaluate command: its output files agree with each other, and bad input is refused in one line."""

import argparse
import csv
import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import evaluate
from ditsam_jax.data import datasets
from ditsam_jax.errors import UserError
from ditsam_jax.evaluate import main
from ditsam_jax.storage import places, saved_model
from tests.small_models import random_model, small_config

SCENES = {'image_size': 64, 'train': 1, 'val': 1, 'test': 6}


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A training run's workdir, whose model has random weights."""
  workdir = tmp_path_factory.mktemp('run')
  config = small_config(max_text_tokens=8)
  config = dataclasses.replace(config, text_encoder=dataclasses.replace(config.text_encoder, vocab_size=128))
  saved_model.save(
    workdir / 'model',
    random_model(config),
    vocabulary=datasets.vocabulary('shapes'),
    data={'dataset': 'shapes', 'scenes': SCENES},
  )
  return workdir


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def evaluated(run, data_dir, *more):
  return main([f'--checkpoint={run}', f'--data-dir={data_dir}', '--batch-size=16', *more])


@pytest.mark.slow
def test_metrics_samples_and_pictures_agree(run, data_dir, capsys):
  assert evaluated(run, data_dir) == 0
  output = run / 'evaluation-test'
  assert sorted(os.listdir(output)) == ['metrics.json', 'predictions.png', 'samples.csv']
  figures = json.loads((output / 'metrics.json').read_text())
  rows = list(csv.DictReader((output / 'samples.csv').read_text().splitlines()))
  assert figures['samples'] == len(rows) > 50
  assert figures['split'] == 'test' and figures['dataset'] == 'shapes'
  assert figures['dtype'] == 'float32'  # 'auto' means float32 on CPUs
  mean = np.mean([float(row['iou_release']) for row in rows])
  assert figures['release']['mIoU'] == pytest.approx(100 * mean, abs=1e-3)
  assert {row['kind'] for row in rows} == set(figures['kinds'])
  printed = capsys.readouterr().out
  assert f'{figures["release"]["mIoU"]:.2f}' in printed and str(output / 'metrics.json') in printed
  assert Image.open(output / 'predictions.png').width > 1000


def test_metrics_are_written_if_a_picture_cannot_be(run, data_dir, tmp_path, capfd):
  (tmp_path / 'predictions.png').mkdir()
  assert evaluated(run, data_dir, '--limit=5', '--save-pictures=1', f'--output={tmp_path}') == 0
  assert sorted(os.listdir(tmp_path)) == ['metrics.json', 'predictions.png', 'ranked.png', 'samples.csv']
  output, errors = capfd.readouterr()
  (warning,) = [line for line in errors.splitlines() if 'warning' in line]
  assert 'predictions.png' in warning
  assert 'predictions.png' not in output and f'{tmp_path / "ranked.png"}' in output


@pytest.mark.slow
def test_limit_output_split_and_dtype(run, data_dir, tmp_path):
  output = tmp_path / 'new' / 'place'
  assert evaluated(run, data_dir, '--limit=5', '--split=val', f'--output={output}', '--dtype=bfloat16') == 0
  figures = json.loads((tmp_path / 'new' / 'place' / 'metrics.json').read_text())
  assert figures['samples'] == 5 and figures['split'] == 'val' and figures['dtype'] == 'bfloat16'


@pytest.mark.slow
def test_several_splits_share_a_folder_and_metrics_file(run, data_dir, capsys):
  assert evaluated(run, data_dir, '--limit=4', '--splits=val,test,val', '--protocol=standard', '--save-pictures=1') == 0
  output = run / 'evaluation-val-test-limit-4'
  each = ('predictions-{}.png', 'ranked-{}.png', 'samples-{}.csv')
  assert sorted(os.listdir(output)) == sorted(
    ['metrics.json', *(name.format(split) for name in each for split in ('val', 'test'))]
  )
  figures = json.loads((output / 'metrics.json').read_text())
  assert list(figures['splits']) == ['val', 'test'] and figures['dataset'] == 'shapes'
  for split, found in figures['splits'].items():
    assert found['split'] == split and found['samples'] == 4
    assert 'mIoU' in found['standard'] and 'release' not in found
    assert found['breakdowns']['target size']
  printed = capsys.readouterr().out
  assert 'standard protocol' in printed and 'release' not in printed.partition('written')[0]
  assert 'words: 3-5' in printed


def test_a_shipped_models_results_go_to_runs(run, data_dir, tmp_path, monkeypatch):
  shutil.copytree(run / 'model', tmp_path / 'shipped' / 'little')
  monkeypatch.setattr(places, 'SHIPPED', tmp_path / 'shipped')
  monkeypatch.chdir(tmp_path)
  assert evaluated('little', data_dir, '--limit=3') == 0
  assert (tmp_path / 'runs' / 'evaluation-little-test-limit-3' / 'metrics.json').is_file()


def test_results_of_other_data_sets_and_limits_go_to_other_folders(tmp_path, monkeypatch):
  monkeypatch.setattr(places, 'is_shipped', lambda name: False)
  common, folders = dict(checkpoint=str(tmp_path), splits=['val'], output=None), set()
  for another, limit in [('', None), ('refcoco+', None), ('refcocog/google', None), ('', 10)]:
    folders.add(str(evaluate._folder(argparse.Namespace(**common, limit=limit), another)))
  names = ['val', 'refcoco+-val', 'refcocog-google-val', 'val-limit-10']
  assert folders == {f'{tmp_path}/evaluation-{name}' for name in names}


@pytest.mark.parametrize(
  'arguments, expected',
  [
    (['--split=tset'], ['tset', 'train', 'val', 'test']),
    (['--splits=val,tset,vla'], ["'tset', 'vla'", 'train', 'val', 'test']),
    (['--splits=,'], ['--splits', 'val,test']),
    (['--save-pictures=-1'], ['--save-pictures=-1', '0 to 100']),
    (['--save-pictures=101'], ['--save-pictures=101', '0 to 100']),
    (['--hosts=2'], ['--coordinator', '--host']),
    (['--coordinator=here:1', '--hosts=2', '--host=2'], ['--host=2', 'from 0 to --hosts - 1']),
    (['--dataset='], ["data set ''", 'shapes', 'refcoco']),
    (['--dataset=coco'], ['coco', 'shapes', 'refcoco']),
    (['--dataset=refcoco'], ['refcoco', 'testA']),
    (['--dataset=refcoco', '--split=testA'], ['refcoco', 'python -m ditsam_jax.prepare']),
    (['--limit=0'], ['--limit=0', 'from 1']),
    (['--batch-size=-2'], ['--batch-size=-2', 'from 1']),
    (['--checkpoint=nowhere'], ['nowhere', 'workdir']),
  ],
)
def test_bad_arguments_are_named_with_the_choices(run, data_dir, arguments, expected):
  before = sorted(os.listdir(run))
  with pytest.raises(UserError) as caught:
    evaluated(run, data_dir, *arguments)
  assert all(word in str(caught.value) for word in expected)
  assert sorted(os.listdir(run)) == before


def test_an_output_that_is_a_file_is_refused_at_once(run, data_dir, tmp_path):
  (tmp_path / 'taken').write_text('')
  with pytest.raises(UserError, match='taken.*--output'):
    evaluated(run, data_dir, f'--output={tmp_path / "taken"}')


def test_a_model_without_a_text_encoder_is_refused(data_dir, tmp_path):
  saved_model.save(tmp_path / 'sam', random_model(small_config(text_encoder=None, fusion='none')))
  with pytest.raises(UserError, match='text'):
    evaluated(tmp_path / 'sam', data_dir)
