"""Models in a bucket equal those on a disk, and always exist whole."""

import json
import os

import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage import copies, places, saved_model
from ditsam_jax.storage.description import data_config, read_config, vocabulary_file
from tests.buckets import Fault, bucket, store  # noqa: F401
from tests.small_models import SAM, random_model

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811


@pytest.fixture(scope='module')
def models():
  return random_model(SAM, seed=1), random_model(SAM, seed=2)


def equal(one, other):
  one, other = weights_of(one), weights_of(other)
  return one.keys() == other.keys() and all(np.array_equal(one[name][...], other[name][...]) for name in one)


@pytest.mark.slow
def test_saving_and_loading_preserves_everything(bucket, models):
  saved_model.save(bucket / 'run/model', models[0], data={'dataset': 'shapes'})
  for given in (bucket / 'run/model', str(bucket / 'run')):  # a workdir resolves to its model
    assert equal(saved_model.load(given), models[0])
    assert read_config(given) == models[0].config and data_config(given) == {'dataset': 'shapes'}


@pytest.mark.slow
def test_a_shipped_model_with_its_vocabulary(bucket):
  shapes = saved_model.load('shapes')
  saved_model.save(bucket / 'shapes', shapes, vocabulary=vocabulary_file('shapes'))
  assert vocabulary_file(bucket / 'shapes').read_bytes() == vocabulary_file('shapes').read_bytes()
  assert equal(saved_model.load(str(bucket / 'shapes')), shapes)


def test_a_copied_folder_is_a_model_too(bucket, models, tmp_path):
  """As by `gcloud storage cp --recursive`."""
  saved_model.save(bucket / 'model', models[0])
  for name in objects.entries(bucket / 'model'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes((bucket / 'model' / name).read_bytes())
  assert equal(saved_model.load(tmp_path), models[0])


def test_a_folder_copied_into_a_bucket_is_a_model_too(bucket, models, tmp_path):
  """Its files are not in a version's folder, but beside model.json, which lists them."""
  saved_model.save(tmp_path / 'start', models[0])
  files = [path for path in (tmp_path / 'start').rglob('*') if path.is_file()]
  objects.upload({bucket / 'models' / path.relative_to(tmp_path).as_posix(): path for path in files})
  assert equal(saved_model.load(bucket / 'models/start'), models[0])


def test_a_model_is_prepared_in_a_folder_that_nobody_else_can_create(bucket, models, tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  (tmp_path / f'.model.writing-{os.getpid()}').mkdir()
  (tmp_path / f'.model.writing-{os.getpid()}' / 'kept').touch()
  saved_model.save(bucket / 'model', models[0])
  assert (tmp_path / f'.model.writing-{os.getpid()}' / 'kept').exists()
  assert not [path for path in tmp_path.iterdir() if path.name.startswith('ditsam_jax-')]


@pytest.mark.slow
def test_saving_again_replaces_the_model(bucket, models):
  for model in models:
    saved_model.save(bucket / 'model', model)
    assert equal(saved_model.load(bucket / 'model'), model)
  folders = {name.partition('/')[0] for name in objects.entries(bucket / 'model')}
  assert len(folders) == 2 and 'model.json' in folders  # the old version is gone


async def _no_sleep(seconds):
  pass


@pytest.mark.slow
@pytest.mark.parametrize('last', [1, 5, 10])
def test_an_interrupted_replacement_keeps_the_old_model(bucket, store, models, monkeypatch, last):
  saved_model.save(bucket / 'model', models[0])
  monkeypatch.setattr('gcsfs.retry.asyncio.sleep', _no_sleep)
  writes = lambda method, path: method == 'POST' and '/upload/' in path
  store.faults = [Fault('slow', writes, times=last - 1), Fault('503', writes)]
  with pytest.raises(UserError, match='the model cannot be written to gs://.*injected'):
    saved_model.save(bucket / 'model', models[1])
  store.faults = []
  assert equal(saved_model.load(bucket / 'model'), models[0])
  saved_model.save(bucket / 'model', models[1])
  assert equal(saved_model.load(bucket / 'model'), models[1])
  assert len({name.partition('/')[0] for name in objects.entries(bucket / 'model')}) == 2


def test_a_flipped_bit_is_refused(bucket, models):
  saved_model.save(bucket / 'model', models[0])
  names = objects.entries(bucket / 'model')
  largest = bucket / 'model' / max(names, key=lambda name: names[name].size)
  data = bytearray(largest.read_bytes())
  data[len(data) // 2] ^= 1
  largest.write_bytes(bytes(data))
  with pytest.raises(UserError, match='is damaged: it has changed: its checksum differs'):
    saved_model.load(bucket / 'model')


def test_a_download_that_is_damaged_on_the_way_is_repeated(bucket, models, monkeypatch):
  saved_model.save(bucket / 'model', models[0])
  real, damaged = objects.download, []

  def download(files, bar=None):
    real(files, bar)
    if not damaged:
      damaged.extend(files.values())
      for file in files.values():
        file.write_bytes(file.read_bytes()[:-1] + b'\0')

  monkeypatch.setattr(copies.bucket, 'download', download)
  assert equal(saved_model.load(bucket / 'model'), models[0]) and damaged


def test_a_model_that_is_replaced_while_it_is_copied_is_copied_anew(bucket, models, monkeypatch):
  saved_model.save(bucket / 'model', models[0])
  real, replaced = objects.download, []

  def download(files, bar=None):
    if not replaced:
      replaced.append(saved_model.save(bucket / 'model', models[1]))
    real(files, bar)

  monkeypatch.setattr(copies.bucket, 'download', download)
  assert equal(saved_model.load(bucket / 'model'), models[1]) and replaced


@pytest.mark.slow
def test_copies_used_longest_ago_make_room(bucket, models, monkeypatch, tmp_path):
  for name in 'abc':
    saved_model.save(bucket / name, models[0])
  size = sum(entry.size for entry in objects.entries(bucket / 'a').values())
  monkeypatch.setattr(copies, 'most_bytes', lambda: int(size * 2.5))
  held = [places.resolve(bucket / name) for name in 'ab']
  own = held[0].parent / 'photos'
  own.mkdir()
  for used, place in ((1, own), (1000, held[1])):
    os.utime(place, (used, used))
  third = places.resolve(bucket / 'c')
  assert [place.is_dir() for place in (own, *held, third)] == [True, True, False, True]
  monkeypatch.setattr(copies, 'most_bytes', lambda: size // 2)
  with pytest.raises(UserError, match='set DITSAM_JAX_CACHE_GB to more'):
    places.resolve(bucket / 'b')


@pytest.mark.parametrize('given', ['x', '-1', 'nan', '0'])
def test_a_size_that_is_none_is_refused(monkeypatch, given):
  monkeypatch.setenv('DITSAM_JAX_CACHE_GB', given)
  with pytest.raises(UserError, match=f'DITSAM_JAX_CACHE_GB={given}: expected a size in GB'):
    copies.most_bytes()


def test_folders_that_are_no_models(bucket):
  with pytest.raises(UserError, match="checkpoint 'gs://.*/none' does not exist"):
    saved_model.load(bucket / 'none')
  objects.write(bucket / 'run/checkpoints/3.00000001/manifest.json', b'{}')
  with pytest.raises(UserError, match='is a training run that has not written its model yet'):
    saved_model.load(bucket / 'run')
  objects.write(bucket / 'other/notes.txt', b'')
  with pytest.raises(UserError, match='it has no model.json'):
    saved_model.load(bucket / 'other')
  with pytest.raises(UserError, match='the folder holds something else'):
    saved_model.save(bucket / 'other', random_model(SAM))


@pytest.mark.parametrize('folder', ['..', 'a/b', 7, '/tmp'])
def test_a_hostile_folder_is_refused(tmp_path, models, folder):
  saved = saved_model.save(tmp_path / 'model', models[0])
  content = json.loads((saved / 'model.json').read_text()) | {'folder': folder}
  (saved / 'model.json').write_text(json.dumps(content))
  with pytest.raises(UserError, match='folder is '):
    saved_model.load(saved)


@pytest.mark.parametrize(
  'name', ['../../outside', 'weights/../../outside', '/outside', 'weights//a', './a', 'weights/']
)
def test_objects_are_not_copied_to_places_outside(tmp_path, monkeypatch, name):
  monkeypatch.setenv('DITSAM_JAX_CACHE', str(tmp_path / 'copies'))
  monkeypatch.setattr(copies.bucket, 'download', lambda files, bar: pytest.fail('something is downloaded'))
  names = {name: objects.Entry(1, 'crc32c:', '1') for name in ('model.json', name)}
  with pytest.raises(UserError, match="gs://bucket/model' holds an object named .*rename or remove the object"):
    copies.copy(objects.BucketPath('gs://bucket/model'), names)
  assert list(tmp_path.iterdir()) == []
