"""Models on the Hub, from a local server that speaks its protocol for files."""

import os
import subprocess
import sys

import numpy as np
import pytest

import ditsam_jax
from ditsam_jax import prepare
from ditsam_jax.errors import UserError
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import hub, saved_model
from ditsam_jax.storage.places import SHIPPED, model, resolve
from tests.data.own.pictures import make, polygon
from tests.small_models import SAM, random_model
from tests.storage.hub_server import running

pytest.importorskip('huggingface_hub', reason="needs the extra 'hub'")


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A small model's folder."""
  return saved_model.save(tmp_path_factory.mktemp('models') / 'sam', random_model(SAM))


@pytest.fixture
def server(tmp_path, monkeypatch):
  """A hub, and a cache of our own. huggingface_hub reads its environment when it is imported."""
  from huggingface_hub import constants, hf_api

  with running() as found:
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'ENDPOINT', found.endpoint)
    monkeypatch.setattr(
      constants, 'HUGGINGFACE_CO_URL_TEMPLATE', f'{found.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}'
    )
    monkeypatch.setattr(hf_api.constants, 'ENDPOINT', found.endpoint)
    hub.model_folder.cache_clear()
    yield found
    hub.model_folder.cache_clear()


def weights(checkpoint):
  return {name: np.asarray(variable[...]) for name, variable in weights_of(ditsam_jax.load(checkpoint)).items()}


@pytest.mark.slow
def test_load_equals_the_folder_that_was_uploaded(server, folder, capsys):
  server.push('me/sam', folder)
  found, expected = weights('hf://me/sam'), weights(folder)
  assert found.keys() == expected.keys()
  assert all(np.array_equal(found[name], array) for name, array in expected.items())
  assert 'downloading hf://me/sam' in capsys.readouterr().err
  assert any(path.startswith('/cdn/') for _, path in server.asked)  # large files come from elsewhere


def test_a_segmenter_reads_the_vocabulary_too(server):
  server.push('me/shapes', SHIPPED / 'shapes', under='models/')
  segmenter = ditsam_jax.Segmenter('hf://me/shapes/models')
  assert segmenter.tokenizer.vocabulary_file.read_bytes() == (SHIPPED / 'shapes' / 'vocab.txt').read_bytes()
  assert segmenter.config == ditsam_jax.load('shapes').config


def test_prepare_reports_with_the_vocabulary_of_a_model_on_the_hub(server, tmp_path, capsys):
  server.push('me/shapes', SHIPPED / 'shapes')
  own = make(tmp_path, 1)
  row = {'image': '0.png', 'text': 'the kettle', 'mask': polygon(own.masks['0.png']), 'split': 'train'}
  assert prepare.main(own.arguments(own.write_lines([row]), '--check', '--model=hf://me/shapes')) == 0
  assert "words missing from the vocabulary of 'hf://me/shapes': 1 of 2" in capsys.readouterr().out


def test_a_second_load_downloads_nothing(server, folder):
  server.push('me/sam', folder)
  resolve('hf://me/sam')
  hub.model_folder.cache_clear()
  server.asked.clear()
  resolve('hf://me/sam')
  assert not any('/resolve/' in path or '/cdn/' in path for _, path in server.asked)


def test_revisions_are_pinned(server, folder, tmp_path):
  first = server.push('me/sam', folder, tag='v1')
  other = saved_model.save(tmp_path / 'other', random_model(SAM, seed=1))
  server.push('me/sam', other)
  expected = {'v1': folder, first: folder, 'main': other}
  for revision, source in expected.items():
    assert (resolve(f'hf://me/sam@{revision}') / 'model.json').read_text() == (source / 'model.json').read_text()
  assert resolve('hf://me/sam') == resolve('hf://me/sam@main') != resolve('hf://me/sam@v1')


def test_without_network_the_cached_files_are_used(server, folder, monkeypatch):
  from huggingface_hub import constants

  commit = server.push('me/sam', folder)
  before = resolve('hf://me/sam')
  hub.model_folder.cache_clear()
  server.broken = True
  assert resolve('hf://me/sam') == before
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  hub.model_folder.cache_clear()
  assert resolve('hf://me/sam') == resolve(f'hf://me/sam@{commit}') == before


def refused(address):
  with pytest.raises(UserError) as error:
    resolve(address)
  assert '\n' not in str(error.value)
  return str(error.value)


def test_errors_are_one_line_and_say_what_to_do(server, folder, tmp_path, monkeypatch):
  from huggingface_hub import constants

  server.push('me/sam', folder)
  server.push('me/closed', folder)
  server.gated.add('me/closed')
  (tmp_path / 'other').mkdir()
  (tmp_path / 'other' / 'config.json').write_text('{}')
  server.push('me/other', tmp_path / 'other')
  assert 'there is no model me/sams on the Hub' in refused('hf://me/sams')
  assert 'me/sam has no branch, tag or commit v9; correct it' in refused('hf://me/sam@v9')
  assert 'must be requested on its page' in refused('hf://me/closed')
  assert 'torch_to_flax.py --input=hf://me/other' in refused('hf://me/other')
  assert 'torch_to_flax.py' in refused('hf://me/sam/elsewhere')
  server.broken = True
  assert 'the files are not in the cache' in refused('hf://me/new')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert 'HF_HUB_OFFLINE is set, and the files are not in the cache' in refused('hf://me/new')


@pytest.mark.parametrize(
  'status, message', [(401, 'Invalid credentials in Authorization header'), (403, 'hf_secret may not read this')]
)
def test_a_refused_token_is_told_from_a_missing_network(server, folder, monkeypatch, status, message):
  monkeypatch.setenv('HF_TOKEN', 'hf_secret')
  server.push('me/sam', folder)
  server.refusal = status, message
  told = refused('hf://me/sam')
  assert f'the Hub refuses the token or the access ({status}, {message.replace("hf_secret", "...")}); renew HF' in told
  assert 'hf_secret' not in told


@pytest.mark.slow
def test_an_interrupted_download_is_not_a_model(server, folder, monkeypatch):
  from huggingface_hub import constants

  server.push('me/sam', folder)
  found = resolve('hf://me/sam')
  next((found / 'weights').rglob('manifest.ocdbt')).unlink()
  hub.model_folder.cache_clear()
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
  assert 'not in the cache' in refused('hf://me/sam')
  monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
  assert weights('hf://me/sam').keys() == weights(folder).keys()


@pytest.mark.parametrize(
  'address',
  [
    'hf://sam',
    'hf:///sam',
    'hf://me/../sam',
    'hf://me/sam/../other',
    'hf://me/sam@',
    'hf://me/sam@a b',
    'hf://-/x',
    'hf://me/a--b',
    'hf://me/a..b',
  ],
)
def test_addresses_are_checked_before_anything_is_asked(server, address):
  for check in (model, resolve):
    with pytest.raises(UserError, match='is not an address on the Hub: expected hf://OWNER/NAME'):
      check(address)
  assert server.asked == []


@pytest.mark.parametrize(
  ('address', 'parts'),
  [
    ('hf://me/sam', ('me/sam', None, '')),
    ('hf:/me/sam/', ('me/sam', None, '')),
    ('hf://me/sam@v1.0/a/b.pth', ('me/sam', 'v1.0', 'a/b.pth')),
    ('hf://me/sam@refs/pr/3/a', ('me/sam', 'refs/pr/3', 'a')),
  ],
)
def test_addresses_are_parsed(address, parts):
  assert hub.parse(address)[1:] == parts


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_commands_take_addresses(folder, tmp_path):
  with running() as server:
    server.push('me/sam', folder)
    settings = {'HF_ENDPOINT': server.endpoint, 'HF_HOME': str(tmp_path / 'home'), 'JAX_PLATFORMS': 'cpu'}

    def run(*arguments, **changes):
      command = [sys.executable, '-m', *arguments]
      return subprocess.run(command, env=os.environ | settings | changes, capture_output=True, text=True, cwd=tmp_path)

    done = run('ditsam_jax.export', '--checkpoint=hf://me/sam@main', '--output=copy', '--dtype=float16')
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'copy' / 'model.json').is_file()
  away = run('ditsam_jax.export', '--checkpoint=hf://me/other', '--output=second')  # the server is gone
  assert (away.returncode, away.stderr.count('error:')) == (2, 1)
  assert 'the Hub cannot be reached' in away.stderr and not (tmp_path / 'second').exists()


@pytest.mark.slow
def test_pytorch_weights_convert_from_the_hub(server, tmp_path):
  torch = pytest.importorskip('torch')
  from ditsam_jax.convert import torch_to_flax
  from tests.convert import torch_models

  theirs = torch_models.hugging_face_sam()
  for name in ('both', 'pickle'):
    (tmp_path / name).mkdir()
    torch.save(theirs.state_dict(), tmp_path / name / 'pytorch_model.bin')
    theirs.config.save_pretrained(tmp_path / name)
  theirs.save_pretrained(tmp_path / 'both')
  for name in ('both', 'pickle'):
    server.push(f'me/{name}', tmp_path / name)
  addresses = {'hf://me/both@main': '.safetensors', 'hf://me/pickle': '.bin', 'hf://me/both/pytorch_model.bin': '.bin'}
  stored = {}
  for number, (address, kind) in enumerate(addresses.items()):
    server.asked.clear()
    assert torch_to_flax.main([f'--input={address}', f'--output={tmp_path / str(number)}']) == 0
    assert {path.rpartition('.')[2] for _, path in server.asked if '/resolve/' in path} - {'json'} == {kind[1:]}
    stored[address] = saved_model.read_weights(tmp_path / str(number))
  first, *others = stored.values()
  assert all(np.array_equal(first[name], other[name]) for other in others for name in first)


def test_a_repository_without_weights_cannot_be_converted(server, tmp_path):
  pytest.importorskip('torch')
  from ditsam_jax.convert import torch_to_flax

  (tmp_path / 'repository').mkdir()
  (tmp_path / 'repository' / 'config.json').write_text('{}')
  server.push('me/empty', tmp_path / 'repository')
  with pytest.raises(UserError, match=r'holds no weights \(model.safetensors, pytorch_model.bin\); .* give the file'):
    torch_to_flax.main(['--input=hf://me/empty', f'--output={tmp_path / "model"}'])
  assert not (tmp_path / 'model').exists()
