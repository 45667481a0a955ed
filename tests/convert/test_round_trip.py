"""flax_to_torch, then torch_to_flax without flags, restores config, masks and vocabulary; foreign JSON is detected."""

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from ditsam_jax.convert import flax_to_torch, torch_to_flax
from ditsam_jax.convert.torch_peer import random_inputs, run_ours
from ditsam_jax.errors import UserError
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import data_config, fresh_parts, read_config, read_description, vocabulary_file
from tests.convert import torch_models
from tests.small_models import random_model

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', *'abcdefghijklmnopqrst']


def to_torch(model, file):
  assert flax_to_torch.main([f'--input={model}', f'--output={file}']) == 0


def to_flax(file, model, *flags):
  assert torch_to_flax.main([f'--input={file}', f'--output={model}', *flags]) == 0


def refusal(file, tmp_path, *flags) -> str:
  with pytest.raises(UserError) as error:
    torch_to_flax.main([f'--input={file}', f'--output={tmp_path / "never"}', *flags])
  assert '\n' not in str(error.value) and not (tmp_path / 'never').exists()
  return str(error.value)


def odd_config(fusion):
  """A config with heads, sizes, thresholds and normalisation unlike any known model's."""
  config = torch_models.SAM if fusion is None else torch_models.text_config(fusion)
  return dataclasses.replace(
    config,
    mask_decoder=dataclasses.replace(config.mask_decoder, heads=2),
    text_encoder=config.text_encoder and dataclasses.replace(config.text_encoder, heads=2, dropout=0.25),
    image_size=96,
    pixel_mean=(0.25, 0.5, 0.75),
    pixel_std=(0.5, 0.25, 0.125),
    max_text_tokens=9,
    mask_threshold=0.7,
    align_corners=fusion is None,
    fusion_dropout=0.3,
  )


@pytest.fixture(scope='module', params=[None, 'e2e', 'layer_wise_vith'])
def saved(request, tmp_path_factory):
  """A model and its export."""
  folder = tmp_path_factory.mktemp('odd')
  model = random_model(odd_config(request.param))
  vocabulary = None
  if request.param:
    vocabulary = folder / 'vocab.txt'
    vocabulary.write_text('\n'.join(WORDS) + '\n')
  saved_model.save(
    folder / 'model',
    model,
    vocabulary=vocabulary,
    data={'dataset': 'shapes'},
    notes={'steps': 7, 'dtype': 'float16'},
    fresh=['text_proj'],
  )
  to_torch(folder / 'model', folder / 'weights.pth')
  return folder


@pytest.mark.slow
def test_any_model_is_restored_without_flags(saved, tmp_path):
  to_flax(saved / 'weights.pth', tmp_path / 'back')
  before, after = saved_model.load(saved / 'model'), saved_model.load(tmp_path / 'back')
  assert after.config == before.config
  inputs = random_inputs(before.config)
  ours, theirs = run_ours(after, inputs), run_ours(before, inputs)
  assert ours.keys() == theirs.keys()
  for stage, expected in theirs.items():
    np.testing.assert_array_equal(ours[stage], expected, err_msg=stage)
  assert data_config(tmp_path / 'back') == {'dataset': 'shapes'}
  assert fresh_parts(tmp_path / 'back') == ['text_proj']
  notes = read_description(tmp_path / 'back')['notes']
  assert notes['steps'] == 7 and 'dtype' not in notes  # which `export` takes for a sign of its own folders
  if before.config.text_encoder:
    assert vocabulary_file(tmp_path / 'back').read_text().split() == WORDS


@pytest.mark.slow
def test_without_the_json_nothing_is_guessed(saved, tmp_path):
  (tmp_path / 'alone.pth').write_bytes((saved / 'weights.pth').read_bytes())
  assert 'give --decoder-heads' in refusal(tmp_path / 'alone.pth', tmp_path, '--text-heads=2', '--fusion=e2e')


@pytest.mark.parametrize('flag, value', [('--decoder-heads=4', 2), ('--image-size=64', 96)])
def test_a_contradicting_flag_is_refused_with_both_values(saved, tmp_path, flag, value):
  assert f'{flag}, but {saved / "weights.pth.json"} says {value}' in refusal(saved / 'weights.pth', tmp_path, flag)


@pytest.mark.slow
def test_the_json_of_other_weights_is_detected(saved, tmp_path):
  """For weights trained further, --config confirms that the JSON still applies."""
  file = tmp_path / 'weights.pth'
  content = torch.load(saved / 'weights.pth', weights_only=True)
  tensors = content.get('state_dict', content)
  next(iter(tensors.values())).add_(1)
  torch.save(content, file)
  (tmp_path / 'weights.pth.json').write_bytes((saved / 'weights.pth.json').read_bytes())
  assert 'was written for other weights' in refusal(file, tmp_path)
  to_flax(file, tmp_path / 'model', f'--config={tmp_path / "weights.pth.json"}')
  assert read_config(tmp_path / 'model') == read_config(saved / 'model')


@pytest.mark.slow
@pytest.mark.parametrize(
  'change, message',
  [
    (lambda text: text[:100], 'damaged or not JSON'),
    (lambda text: '[' * 100_000, 'nested too deeply'),
    (lambda text: text.replace('version 1', 'version 2'), 'format ditsam_jax model beside PyTorch weights, version 2'),
    (lambda text: text.replace('"image_size": 96', '"image_size": 97'), 'image_size is 97'),
    (lambda text: text.replace('"mask_threshold": 0.7', '"mask_threshold": NaN'), 'NaN is not a number'),
    (lambda text: text.replace('"notes": {', '"notes": 3, "x": {'), 'notes is not a dict'),
  ],
)
def test_a_damaged_json_is_refused(saved, tmp_path, change, message):
  (tmp_path / 'weights.pth').write_bytes((saved / 'weights.pth').read_bytes())
  (tmp_path / 'weights.pth.json').write_text(change((saved / 'weights.pth.json').read_text()))
  assert message in refusal(tmp_path / 'weights.pth', tmp_path)


def test_a_foreign_json_is_neither_read_nor_overwritten(saved, tmp_path, capsys):
  (tmp_path / 'weights.pth.json').write_text('{"lr": 1}')
  with pytest.raises(UserError, match='something else is there'):
    flax_to_torch.main([f'--input={saved / "model"}', f'--output={tmp_path / "weights.pth"}'])
  assert [path.name for path in tmp_path.iterdir()] == ['weights.pth.json']
  (tmp_path / 'weights.pth').write_bytes((saved / 'weights.pth').read_bytes())
  refusal(tmp_path / 'weights.pth', tmp_path, '--fusion=e2e', '--text-heads=2')
  assert 'was not written by flax_to_torch.py, and is ignored' in capsys.readouterr().err


@pytest.mark.slow
def test_an_exported_sam_combines_with_a_bert_and_keeps_its_heads(tmp_path):
  saved_model.save(tmp_path / 'sam', random_model(odd_config(None)))
  to_torch(tmp_path / 'sam', tmp_path / 'sam.pth')
  torch_models.bert().save_pretrained(tmp_path / 'bert')
  to_flax(
    tmp_path / 'sam.pth', tmp_path / 'start', f'--text-encoder={tmp_path / "bert"}', '--fusion=e2e', '--image-size=64'
  )
  config = read_config(tmp_path / 'start')
  assert (config.mask_decoder.heads, config.text_encoder.heads) == (2, 3)
  assert config.pixel_mean == (0.25, 0.5, 0.75)
  assert fresh_parts(tmp_path / 'start') == ['image_encoder.instruction', 'text_proj']
  assert 'mask_threshold' in json.loads((tmp_path / 'start' / 'model.json').read_text())['assumed']


@pytest.mark.multiprocess
def test_the_converters_do_not_start_the_accelerator(tmp_path):
  """JAX_PLATFORMS names an accelerator that does not exist, so starting it would fail."""
  for script, given, written in (('flax_to_torch', 'shapes', 'shapes.pth'), ('torch_to_flax', 'shapes.pth', 'model')):
    run = subprocess.run(
      [sys.executable, '-m', f'ditsam_jax.convert.{script}', f'--input={given}', f'--output={written}'],
      cwd=tmp_path,
      env={**os.environ, 'JAX_PLATFORMS': 'absent'},
      capture_output=True,
      text=True,
    )
    assert run.returncode == 0, run.stderr
  assert read_config(tmp_path / 'model') == read_config('shapes')
