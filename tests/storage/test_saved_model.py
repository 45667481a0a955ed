"""Saved models load unchanged; missing, foreign or damaged ones are refused in one line."""

import json
import os
import random
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import checksums, saved_model
from ditsam_jax.storage.description import data_config, fresh_parts, read_description, vocabulary_file, warn_if_fresh
from ditsam_jax.storage.places import resolve
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.tokenization import _bert_tokenizer
from tests.small_models import random_model, small_config, write_unusable

ROOT = Path(__file__).parents[2]
VOCABULARY = '[PAD]\n[UNK]\n[CLS]\n[SEP]\nred\n'
DATA = {'dataset': 'shapes', 'scenes': {'train': 3}}


@pytest.fixture(scope='module')
def model():
  return random_model(small_config(fusion='e2e'))


@pytest.fixture(scope='module')
def saved(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp('models')
  vocabulary = folder / 'words.txt'
  vocabulary.write_text(VOCABULARY)
  return saved_model.save(folder / 'mine', model, vocabulary=vocabulary, data=DATA, notes={'steps': 7})


@pytest.fixture
def copy(saved, tmp_path):
  """A copy to damage."""
  return shutil.copytree(saved, tmp_path / 'copy')


def refusal(folder, function=saved_model.load):
  with pytest.raises(UserError) as error:
    function(folder)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_saving_and_loading_preserves_everything(model, saved):
  loaded = saved_model.load(saved)
  assert loaded.config == model.config
  ours, theirs = weights_of(loaded), weights_of(model)
  assert ours.keys() == theirs.keys()
  for name in ours:
    assert type(ours[name]) is type(theirs[name])
    np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=name)
  assert vocabulary_file(saved).read_text() == VOCABULARY
  assert data_config(saved) == DATA


@pytest.mark.slow
def test_a_loaded_model_is_in_eval_mode(saved):
  """In train mode, dropout would make two runs differ."""
  encoder = saved_model.load(saved).text_encoder
  arguments = jnp.ones((1, 6), int), jnp.ones((1, 6), int)
  np.testing.assert_array_equal(encoder(*arguments), encoder(*arguments))


@pytest.mark.slow
def test_an_average_keeps_what_is_untrained_and_needs_one_vocabulary(model, tmp_path):
  def average(other):
    command = [sys.executable, str(ROOT / 'benchmarks' / 'averaged.py'), tmp_path / 'first', other, tmp_path / 'mean']
    return subprocess.run(command, capture_output=True, text=True)

  for name, words in (('first', VOCABULARY), ('second', VOCABULARY), ('third', VOCABULARY.replace('red', 'blue'))):
    (tmp_path / 'words.txt').write_text(words)
    about = dict(vocabulary=tmp_path / 'words.txt', data=DATA, fresh=['text_proj'], assumed=['image_encoder.heads'])
    saved_model.save(tmp_path / name, model, **about)
  assert 'different vocabularies' in average(tmp_path / 'third').stderr and not (tmp_path / 'mean').exists()
  assert average(tmp_path / 'second').returncode == 0
  assert read_description(tmp_path / 'mean') == read_description(tmp_path / 'second') | {
    'files': read_description(tmp_path / 'mean')['files']
  }


@pytest.mark.slow
def test_half_precision_rounds_and_loads_as_f32(model, tmp_path):
  small = saved_model.save(tmp_path / 'half', model, dtype=jnp.float16)
  exact = {name for name, array in saved_model.read_weights(small).items() if array.dtype == np.float32}
  assert exact == {'prompt_encoder.pe_layer.gaussian_matrix'}  # the rest is f16
  loaded = weights_of(saved_model.load(small))
  for name, variable in weights_of(model).items():
    assert loaded[name].dtype == jnp.float32
    stored = np.asarray(variable[...], np.float32 if name in exact else np.float16)
    np.testing.assert_array_equal(loaded[name][...], stored, err_msg=name)


def test_a_workdir_resolves_to_its_model(saved, tmp_path):
  shutil.copytree(saved, tmp_path / 'run' / 'model')
  assert resolve(tmp_path / 'run') == tmp_path / 'run' / 'model'


def test_saving_again_replaces_the_model(model, tmp_path):
  for step in (1, 2):
    saved_model.save(tmp_path / 'mine', model, notes={'steps': step})
  assert read_description(tmp_path / 'mine')['notes'] == {'steps': 2}
  assert [path.name for path in tmp_path.iterdir()] == ['mine']


def test_a_missing_folder():
  message = refusal('no/such/model')
  assert 'no/such/model' in message and 'does not exist' in message


def test_a_foreign_folder(tmp_path):
  (tmp_path / 'photo.jpg').write_bytes(b'')
  assert 'model.json' in refusal(tmp_path)


def test_a_run_without_a_model_yet(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  assert 'training run' in refusal(tmp_path)


def test_a_model_without_text_has_no_vocabulary(model, tmp_path):
  saved_model.save(tmp_path / 'plain', model)
  assert 'vocab.txt' in refusal(tmp_path / 'plain', vocabulary_file)


@pytest.mark.parametrize('text', ['', '{"format": 1', '[]', '{}', '\xff\x00'])
def test_a_damaged_description(copy, text):
  (copy / 'model.json').write_bytes(text.encode('latin-1'))
  assert 'model.json' in refusal(copy)


@pytest.mark.parametrize(
  'change, expected',
  [
    (lambda d: d.update(format=99), '99'),
    (lambda d: d['model'].update(fusion='other'), 'other'),
    (lambda d: d['model'].update(colour='red'), 'colour'),
    (lambda d: d['model'].update(image_encoder=3), 'model.json'),
    (lambda d: d.pop('model'), 'model'),
  ],
)
def test_an_invalid_description(copy, change, expected):
  description = json.loads((copy / 'model.json').read_text())
  change(description)
  (copy / 'model.json').write_text(json.dumps(description))
  assert expected in refusal(copy)


@pytest.mark.parametrize(
  'content, expected',
  [
    (b'{"format": 1, "model": ' + b'[' * 200_000, 'nested too deeply'),
    (b'{"format": 1, "model": {"mask_threshold": NaN}}', 'NaN'),
    (b'{"format": 1, "model": {"mask_threshold": 1e999}}', 'too large'),
    (b'{"format": 1, "model": {}, "notes": []}', 'notes is []'),
    (b'{"format": 1, "model": {}, "fresh": "text_proj"}', 'fresh is'),
    (b'{"format": true, "model": {}}', 'format True'),
    (b'"format model"', 'not a ditsam_jax model'),
    (b' ' * 20_000_000, 'expected at most'),
  ],
)
def test_a_hostile_description(copy, content, expected):
  (copy / 'model.json').write_bytes(content)
  assert expected in refusal(copy)


@pytest.mark.parametrize('name', ['model.json', 'vocab.txt', 'weights/manifest.ocdbt'])
def test_pipes_are_refused_without_blocking(copy, name):
  (copy / name).unlink()
  os.mkfifo(copy / name)
  function = vocabulary_file if name == 'vocab.txt' else saved_model.load
  assert 'a device or a pipe' in refusal(copy, function)


def test_a_flipped_bit_in_the_weights_is_refused(copy):
  """TensorStore detects only about one in sixty."""
  rng = random.Random(0)
  for file in (file for file in (copy / 'weights').rglob('*') if file.is_file()):
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
    file.write_bytes(damaged)
    message = refusal(copy, saved_model.read_weights)
    assert file.name in message and 'damaged' in message
    file.write_bytes(whole)
  saved_model.read_weights(copy)


def test_the_path_of_a_model_may_lead_upwards(copy, monkeypatch):
  monkeypatch.chdir(copy / 'weights')
  saved_model.read_weights('..')
  monkeypatch.chdir(copy)
  saved_model.read_weights(f'../{copy.name}')


@pytest.mark.parametrize('name', ['weights/../../other', '/weights/other'])
def test_checksums_of_files_outside_the_model_are_refused(copy, name):
  with pytest.raises(UserError, match='lies outside'):
    checksums.check(copy, {name: [0, '']})


def test_models_without_checksums_load(copy):
  description = json.loads((copy / 'model.json').read_text())
  for name in ('files', 'fresh', 'assumed', 'vocabulary'):
    del description[name]
  (copy / 'model.json').write_text(json.dumps(description))
  saved_model.load(copy)
  assert fresh_parts(copy) == []


@pytest.mark.slow
@pytest.mark.parametrize('value', [np.nan, -1e30])
def test_unusable_weights_are_refused(tmp_path, value):
  write_unusable(tmp_path / 'bad', value)
  assert 'image_encoder.patch_embed.bias holds' in refusal(tmp_path / 'bad')


def test_weights_too_large_for_a_smaller_type_are_refused(tmp_path):
  model = random_model(small_config(fusion='none', text_encoder=None))
  bias = weights_of(model)['image_encoder.patch_embed.bias']
  bias.set_value(bias[...].at[0].set(1e5))
  message = refusal(tmp_path / 'small', lambda folder: saved_model.save(folder, model, dtype=jnp.float16))
  assert 'stored as float16' in message and '1 of 24 values' in message
  assert list(tmp_path.iterdir()) == []


def test_the_vocabulary_of_another_model_is_refused(copy):
  (copy / 'vocab.txt').write_text(VOCABULARY + 'blue\n')
  assert 'has 6 word pieces and the model 5 (embeddings: 20)' in refusal(copy, vocabulary_file)
  (copy / 'vocab.txt').write_text(VOCABULARY.replace('red', 'blue'))
  assert 'but different ones' in refusal(copy, vocabulary_file)
  description = json.loads((copy / 'model.json').read_text())
  del description['vocabulary']
  (copy / 'model.json').write_text(json.dumps(description))
  assert 'has 5 word pieces and the model 20' in refusal(copy, vocabulary_file)


def test_more_words_than_embeddings_are_refused_when_saving(model, tmp_path):
  (tmp_path / 'vocab.txt').write_text(VOCABULARY + '\n'.join(map(str, range(30))) + '\n')
  message = refusal(
    tmp_path / 'mine', lambda folder: saved_model.save(folder, model, vocabulary=tmp_path / 'vocab.txt')
  )
  assert 'has 35 word pieces, the text encoder 20' in message


def test_tokenizer_json_can_replace_vocab_txt(copy, saved):
  tokenizer = _bert_tokenizer(read_vocabulary(saved / 'vocab.txt'))
  (copy / 'vocab.txt').unlink()
  tokenizer.save(str(copy / 'tokenizer.json'))
  assert vocabulary_file(copy) == copy / 'tokenizer.json'
  assert read_vocabulary(copy / 'tokenizer.json') == read_vocabulary(saved / 'vocab.txt')


def test_untrained_parts_are_recorded_and_cause_a_warning(model, tmp_path, capsys):
  folder = saved_model.save(tmp_path / 'start', model, fresh=['image_encoder.instruction', 'text_proj'], assumed=['x'])
  assert fresh_parts(folder) == ['image_encoder.instruction', 'text_proj']
  assert read_description(folder)['assumed'] == ['x']
  warn_if_fresh(folder)
  printed = capsys.readouterr().err
  assert printed.count('\n') == 1
  assert 'image_encoder.instruction, text_proj are untrained' in printed
  warn_if_fresh('shapes')
  assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
  'field, value, expected',
  [
    ('width', 48, 'attn.qkv.kernel is (24, 72), expected (48, 144)'),
    ('depth', 1, 'image_encoder.blocks.1'),
    ('depth', 3, 'image_encoder.blocks.2'),
  ],
)
def test_the_weights_of_another_model_are_refused(copy, field, value, expected):
  description = json.loads((copy / 'model.json').read_text())
  description['model']['image_encoder'][field] = value
  if field == 'width':
    description['model']['fusion'] = 'layer_wise_vith'
  (copy / 'model.json').write_text(json.dumps(description))
  assert expected in refusal(copy)


def test_missing_weights(copy):
  shutil.rmtree(copy / 'weights')
  assert 'weights' in refusal(copy)


def test_too_little_memory_is_not_taken_for_damage(copy, monkeypatch):
  def fail(*arguments, **options):
    raise MemoryError

  monkeypatch.setattr('orbax.checkpoint.PyTreeCheckpointer.restore', fail)
  with pytest.raises(MemoryError):
    saved_model.read_weights(copy)


def test_truncated_weights(copy):
  """All data files are cut in half, as in an incomplete copy."""
  for file in (copy / 'weights').rglob('*'):
    if file.is_file() and file.parent.name == 'd':
      file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
  assert 'weights' in refusal(copy)


def test_an_unwritable_target(model, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='file'):
    saved_model.save(tmp_path / 'file' / 'model', model)


def test_an_interrupted_replacement_keeps_the_old_model(model, tmp_path, monkeypatch):
  folder = saved_model.save(tmp_path / 'mine', model)
  before, replace = (folder / 'model.json').read_bytes(), os.replace

  def interrupted(source, target):
    if '.writing-' in str(source):
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, 'replace', interrupted)
  with pytest.raises(KeyboardInterrupt):
    saved_model.save(folder, model, notes={'new': True})
  assert (folder / 'model.json').read_bytes() == before
  assert [path.name for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('run', [False, True])
def test_a_model_whose_replacement_was_killed_between_the_renames_loads(copy, run):
  place = copy / 'model' if run else copy
  if run:
    copy.rename(copy.with_name('moved'))
    copy.mkdir()
    copy.with_name('moved').rename(place)
  place.rename(place.with_name(f'.{place.name}.retired-{"0a" * 16}'))
  assert read_description(copy)['format'] and place.is_dir()


def test_files_written_after_an_error_are_removed(model, tmp_path, monkeypatch):
  def write(folder, arrays):
    folder.mkdir()
    threading.Timer(0.2, lambda: (folder / 'again').mkdir(parents=True)).start()
    raise OSError(None, 'File too large')

  monkeypatch.setattr(saved_model.arrays, 'write', write)
  with pytest.raises(UserError, match='File too large'):
    saved_model.save(tmp_path / 'model', model)
  assert list(tmp_path.iterdir()) == []
