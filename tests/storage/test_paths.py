"""Commands refuse URLs where they need local paths, before a folder `gs:` is created, and name missing buckets."""

import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax import evaluate, everything, export, predict, prepare, serve, train
from ditsam_jax.errors import UserError
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage import copies, paths, saved_model
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.storage.description import read_config
from tests.buckets import store  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('given', ['.', 'runs/ldit', '/a:b/c', 'a:b', 'C:/models', 'a/~/x', 'runs/gs:/x', 'é/ü'])
def test_local_paths_are_accepted(given):
  assert paths.local(given) == given and paths.local_path(given) == Path(given)


def test_the_home_folder_is_expanded(monkeypatch):
  """Shells expand `~` at the start of a word only, not in `--output=~/x`."""
  monkeypatch.setenv('HOME', '/home/me')
  assert paths.local('~/x') == paths.anywhere('~/x') == '/home/me/x' and paths.local('~') == '/home/me'
  assert paths.local_path('~/x') == paths.any_path('~/x') == paths.any_path(Path('~/x')) == Path('/home/me/x')
  assert paths.local('~copy.png') == '~copy.png'  # a file, unless there is a user of that name
  assert paths.any_path('gs://bucket/~/x') == BucketPath('gs://bucket/~/x')


def test_outputs_below_the_home_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.chdir(tmp_path)
  export.main(['--checkpoint=sam_shapes', '--output=~/models/small', '--dtype=float16'])
  assert read_config('~/models/small') == read_config('sam_shapes')
  saved_model.write('~/models/other', read_config('sam_shapes'), saved_model.read_weights('sam_shapes'))
  assert sorted(path.name for path in (tmp_path / 'home/models').iterdir()) == ['other', 'small']
  monkeypatch.setattr(train, 'train', lambda config, workdir: trained.append(workdir))
  trained = []
  train.main(['--config=ldit:shapes', '--workdir=~/runs/a'])
  assert trained == [tmp_path / 'home/runs/a'] and not (tmp_path / '~').exists()


@pytest.mark.parametrize(
  'given', ['gs://b/x', 'gs:/b/x', 'GS://b', 's3://b', 'https://host/x', 'hdfs://x', 'file:///x']
)
def test_urls_are_refused(given):
  scheme = given.partition(':')[0].lower()
  with pytest.raises(UserError, match=f'{given}.*{scheme}:// is not supported( here)?; '):
    paths.local(given)


def test_places_are_local_or_in_a_bucket():
  for given in ('runs/x', 'gs://bucket', 'gs://my.bucket-1/a b/c'):
    assert paths.anywhere(given) == given
  assert paths.any_path('gs://bucket/a') == BucketPath('gs://bucket/a') and paths.any_path('a/b') == Path('a/b')
  for given in ('gs:/b/x', 'GS://bucket', 'gs://', 'gs://ab/x', 'gs://Bucket/x', 'gs://bucket/../x', 'gs://bucket/*'):
    with pytest.raises(UserError, match='expected gs://BUCKET/PATH'):
      paths.anywhere(given)
  for given in ('s3://bucket/x', 'https://host/x'):
    with pytest.raises(UserError, match='is not supported; '):
      paths.anywhere(given)


def test_caches_share_a_folder(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path / 'home'))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  monkeypatch.delenv(copies.FOLDER, raising=False)
  assert paths.cache_folder() == tmp_path / 'home/.cache/ditsam_jax'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  assert paths.cache_folder() == tmp_path / 'ditsam_jax'
  assert not copies.are_here(BucketPath('gs://bucket'), {})
  (tmp_path / 'ditsam_jax/buckets' / copies._key(BucketPath('gs://bucket'), {})).mkdir(parents=True)
  assert copies.are_here(BucketPath('gs://bucket'), {})


def test_without_a_home_folder_a_place_for_caches_must_be_given(monkeypatch):
  """As in containers that run under a user id of their own."""
  for name in ('XDG_CACHE_HOME', 'HOME'):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr('os.getuid', lambda: 54321)
  with pytest.raises(UserError, match='no home folder; set XDG_CACHE_HOME'):
    paths.cache_folder()


@pytest.mark.parametrize(
  'main, arguments, option',
  [
    (predict.main, ['--image=x.png', '--text=a', '--json='], 'json'),
    (predict.main, ['--image=x.png', '--text=a', '--output', ''], 'output'),
    (everything.main, ['--image=x.png', '--text=a', '--text-checkpoint='], 'text-checkpoint'),
    (evaluate.main, ['--checkpoint='], 'checkpoint'),
    (evaluate.main, ['--checkpoint=shapes', '--data-dir='], 'data-dir'),
    (prepare.main, ['--name=mine', '--annotations='], 'annotations'),
    (export.main, ['--checkpoint=shapes', '--output=x', '--scores='], 'scores'),
    (serve.main, ['--token-file='], 'token-file'),
    (train.main, ['--config=ldit:shapes', '--workdir='], 'workdir'),
  ],
)
def test_an_empty_path_is_not_the_current_folder(main, arguments, option, capsys):
  """As from `--output=$OUT` without such a variable."""
  with pytest.raises(SystemExit, match='2'):
    main(arguments)
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith(f'error: argument --{option}: the path is empty; ')


def test_an_empty_path_in_python_is_refused():
  for use in (paths.local, paths.local_path, paths.anywhere, paths.any_path, Segmenter):
    with pytest.raises(UserError, match='the path is empty'):
      use('')


def test_nul_is_refused():
  with pytest.raises(UserError, match='NUL'):
    paths.local('a\0b')


BUCKET = 'gs://bucket/x'


@pytest.mark.parametrize(
  'main, arguments',
  [
    (train.main, [f'--config={BUCKET}']),
    (predict.main, ['--text=a', f'--image={BUCKET}']),
    (predict.main, ['--text=a', '--image=x.png', f'--output={BUCKET}']),
    (predict.main, ['--text=a', '--image=x.png', f'--json={BUCKET}']),
    (predict.main, [f'--prompts={BUCKET}']),
    (prepare.main, ['--dataset=refcoco', '--images=x', f'--annotations={BUCKET}']),
    (prepare.main, ['--dataset=refcoco', '--annotations=x', f'--images={BUCKET}']),
    (export.main, ['--checkpoint=shapes', f'--output={BUCKET}']),
  ],
)
def test_options_for_local_files_refuse_buckets(tmp_path, monkeypatch, main, arguments):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f'{BUCKET}.*gs:// is not supported here; mount the bucket'):
    main(arguments)
  assert not list(tmp_path.iterdir())


IN_BUCKETS = [
  (train.main, ['--config=ldit:shapes', f'--workdir={BUCKET}']),
  (train.main, ['--config=ldit:shapes', f'--config.init_from={BUCKET}']),
  (train.main, ['--config=finetune:shapes', f'--config.init_from={BUCKET}']),
  (train.main, ['--config=ldit:refcoco', '--config.init_from=shapes', f'--config.data.data_dir={BUCKET}']),
  (evaluate.main, [f'--checkpoint={BUCKET}']),
  (evaluate.main, ['--checkpoint=shapes', f'--data-dir={BUCKET}']),
  (predict.main, ['--text=a', '--image=x.png', f'--checkpoint={BUCKET}']),
  (everything.main, ['--image=x.png', f'--checkpoint={BUCKET}']),
  (serve.main, [f'--checkpoint={BUCKET}']),
  (export.main, [f'--checkpoint={BUCKET}', '--output=x']),
  (prepare.main, ['--name=mine', '--annotations=mine.jsonl', f'--data-dir={BUCKET}']),
  (prepare.main, ['--name=mine', '--annotations=mine.jsonl', '--format=jsonl', f'--model={BUCKET}']),
]


@pytest.mark.parametrize('main, arguments', IN_BUCKETS)
def test_a_missing_bucket_is_named_by_every_command(
  store,  # noqa: F811
  tmp_path,
  monkeypatch,
  main,
  arguments,
):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'x.png').write_bytes(b'')
  (tmp_path / 'mine.jsonl').write_text('')
  with pytest.raises(UserError, match=f'{BUCKET}.* there is no bucket bucket; check its name') as error:
    main(arguments)
  assert '\n' not in str(error.value)


def test_without_the_extra_buckets_are_refused_in_one_line(monkeypatch):
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  objects._filesystem.cache_clear()
  for call in (lambda: Segmenter(BUCKET), lambda: saved_model.load(BUCKET), lambda: read_config(BUCKET)):
    with pytest.raises(UserError, match=r"gs:// needs the extra 'gcs'.*: pip install 'ditsam_jax\[gcs\]'"):
      call()


@pytest.mark.multiprocess
def test_the_converter_refuses_buckets(tmp_path):
  ended = subprocess.run(
    [sys.executable, ROOT / 'convert' / 'torch_to_flax.py', f'--input={BUCKET}', '--output=x'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2 and ended.stderr.count('\n') == 1, ended.stderr
  assert "error: 'gs://bucket/x': gs:// is not supported here" in ended.stderr and not list(tmp_path.iterdir())
