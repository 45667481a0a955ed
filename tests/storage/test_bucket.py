"""Objects of a bucket: written whole or not at all, under conditions, and through faults of the network."""

import os
import pickle
import threading

import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.storage.paths import any_path
from tests.buckets import Fault, bucket, impatient, store  # noqa: F401

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811


def uploads(method, path):
  return method in ('POST', 'PUT') and '/upload/' in path


def test_paths_in_buckets_behave_like_paths():
  path = any_path('gs://bucket/run')
  assert isinstance(path, BucketPath) and str(path / 'a' / 'b') == os.fspath(path / 'a/b') == 'gs://bucket/run/a/b'
  assert (path / 'a').parent == path and path.name == 'run' and path.with_name('x') == BucketPath('gs://bucket/x')
  assert pickle.loads(pickle.dumps(path)) == path and any_path(path) == path and hash(path) == hash(any_path(str(path)))


def test_objects_are_listed_and_read(bucket, tmp_path):
  names = ['a.txt', 'deep/b c.txt', 'deep/er/ü+&%.bin', 'deeper']
  for name in names:
    objects.write(bucket / 'x' / name, name.encode())
  assert list(objects.entries(bucket / 'x')) == names and list(objects.entries(bucket / 'deep')) == []
  assert [path.name for path in (bucket / 'x').iterdir()] == ['a.txt', 'deep', 'deeper']
  assert list((bucket / 'x').glob('d*')) == [bucket / 'x/deep', bucket / 'x/deeper']
  assert list(bucket.glob('*/deep/*.txt')) == [bucket / 'x/deep/b c.txt']
  assert (bucket / 'x/deep').is_dir() and not (bucket / 'x/deep').is_file() and not (bucket / 'x/dee').exists()
  assert (bucket / 'x' / names[2]).read_text() == names[2]
  with pytest.raises(FileNotFoundError):
    (bucket / 'x/none').read_bytes()
  objects.remove_tree(bucket / 'x/deep')
  assert list(objects.entries(bucket)) == ['x/a.txt', 'x/deeper']


def test_a_write_may_depend_on_the_version_before(bucket):
  file = bucket / 'lock'
  first = objects.write(file, b'1', version='')
  second = objects.write(file, b'2', version=first)
  for stale in ('', first):
    with pytest.raises(objects.Changed):
      objects.write(file, b'3', version=stale)
  assert objects.read_version(file) == (b'2', second)


def test_a_conditional_write_whose_answer_is_lost_has_succeeded(bucket, store):
  store.faults = [Fault('lost', uploads, times=1)]
  version = objects.write(bucket / 'lock', b'mine', version='')
  assert objects.read_version(bucket / 'lock') == (b'mine', version) and store.faults[0].seen == 1


@pytest.mark.parametrize('kind', ['503', 'cut', 'lost', 'slow', 'hang', 'swallowed'])
def test_large_and_small_uploads_survive_faults(bucket, store, tmp_path, impatient, kind):
  content = {
    'small': os.urandom(1000),
    'large': os.urandom(6_000_000),
  }  # gcsfs sends the second one in several requests
  for name, data in content.items():
    (tmp_path / name).write_bytes(data)
  store.faults = [Fault(kind, uploads, times=2, seconds=0.3)]
  objects.upload({bucket / name: tmp_path / name for name in content})
  assert store.faults[0].seen == 2
  store.faults = []
  assert {name: (bucket / name).read_bytes() for name in objects.entries(bucket)} == content


def test_requests_that_are_never_answered_are_sent_again(bucket, store, tmp_path, impatient, monkeypatch):
  monkeypatch.setattr('gcsfs.retry.asyncio.sleep', _no_sleep)
  objects.write(bucket / 'old', b'old')
  (tmp_path / 'file').write_bytes(b'new')
  for request in (
    lambda: objects.read(bucket / 'old'),
    lambda: objects.write(bucket / 'new', b'new', version=''),
    lambda: objects.upload({bucket / 'uploaded': tmp_path / 'file'}),
    lambda: objects.download({bucket / 'old': tmp_path / 'downloaded'}),
  ):
    store.faults = [Fault('hang', times=1)]
    _in_time(request)
    assert store.faults[0].seen == 1
  store.faults = []
  assert list(objects.entries(bucket)) == ['new', 'old', 'uploaded']
  assert (tmp_path / 'downloaded').read_bytes() == b'old'


def test_file_systems_of_other_libraries_do_not_wait_forever_either(store):
  """They have limits for silence, not for transfers as a whole."""
  import fsspec

  limits = [
    files.requests_timeout for files in (objects._filesystem(), fsspec.filesystem('gs', finalize_on_close=True))
  ]
  assert limits[0] == limits[1] and limits[0].sock_read == limits[0].sock_connect <= 60 and limits[0].total is None


def _in_time(request, seconds=20):
  """Calls a function in a thread, so that a test fails instead of waiting forever."""
  done = []
  thread = threading.Thread(target=lambda: done.append(request()), daemon=True)
  thread.start()
  thread.join(seconds)
  assert done


def test_an_upload_that_is_cut_off_for_good_leaves_nothing(bucket, store, tmp_path, monkeypatch):
  monkeypatch.setattr('gcsfs.retry.asyncio.sleep', _no_sleep)
  (tmp_path / 'file').write_bytes(os.urandom(100_000))
  objects.write(bucket / 'old', b'old')
  store.faults = [Fault('cut', uploads)]
  for name in ('new', 'old'):
    with pytest.raises(OSError, match='Disconnected|reset|closed'):
      objects.upload({bucket / name: tmp_path / 'file'})
  store.faults = []
  assert list(objects.entries(bucket)) == ['old'] and (bucket / 'old').read_bytes() == b'old'


async def _no_sleep(seconds):
  pass


def test_an_unreachable_store_is_not_taken_for_an_empty_one(bucket, store, monkeypatch):
  monkeypatch.setattr('gcsfs.retry.asyncio.sleep', _no_sleep)
  store.faults = [Fault('503')]
  for ask in (bucket.is_dir, (bucket / 'x').exists, (bucket / 'x').is_file, lambda: list(bucket.iterdir())):
    with pytest.raises(OSError, match='injected'):
      ask()


def test_a_missing_bucket_is_named(store):
  with pytest.raises(UserError, match="'gs://no-such-bucket/x' cannot be used: there is no bucket no-such-bucket;"):
    objects.check(BucketPath('gs://no-such-bucket/x'))


@pytest.mark.parametrize(
  'status, expected',
  [
    ('401', 'there are no valid credentials; run `gcloud auth application-default login`'),
    ('403', "give the account the role 'Storage Object User' on the bucket bucket-"),
  ],
)
def test_missing_rights_are_explained_in_one_line(bucket, store, status, expected):
  store.faults = [Fault(status)]
  with pytest.raises(UserError, match=f"'{bucket}/x' cannot be used: .*{expected}") as error:
    objects.check(bucket / 'x')
  assert '\n' not in str(error.value)
  store.faults = [Fault(status, uploads)]
  with pytest.raises(UserError, match=expected):
    objects.check(bucket / 'x', writes=True)


def test_a_bucket_is_checked_without_a_trace(bucket):
  objects.check(bucket / 'x', writes=True)
  assert objects.entries(bucket) == {}
