"""All commands refuse URLs as paths, before a folder `gs:` is created."""

import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax import evaluate, export, predict, prepare, train
from ditsam_jax.errors import UserError
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.storage import paths, saved_model
from ditsam_jax.storage.description import read_config

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('given', ['', '.', 'runs/ldit', '/a:b/c', 'a:b', 'C:/models', '~/x', 'runs/gs:/x', 'é/ü'])
def test_local_paths_are_accepted(given):
  assert paths.local(given) == given and paths.local_path(given) == Path(given)


@pytest.mark.parametrize(
  'given', ['gs://b/x', 'gs:/b/x', 'GS://b', 's3://b', 'https://host/x', 'hdfs://x', 'file:///x']
)
def test_urls_are_refused(given):
  scheme = given.partition(':')[0].lower()
  with pytest.raises(UserError, match=f'{given}.*{scheme}:// is not supported; '):
    paths.local(given)


def test_nul_is_refused():
  with pytest.raises(UserError, match='NUL'):
    paths.local('a\0b')


BUCKET = 'gs://bucket/x'


@pytest.mark.parametrize(
  'main, arguments',
  [
    (train.main, ['--config=ldit:shapes', f'--workdir={BUCKET}']),
    (train.main, [f'--config={BUCKET}']),
    (train.main, ['--config=ldit:shapes', f'--config.init_from={BUCKET}']),
    (train.main, ['--config=ldit:shapes', f'--config.data.data_dir={BUCKET}']),
    (evaluate.main, [f'--checkpoint={BUCKET}']),
    (evaluate.main, ['--checkpoint=shapes', f'--data-dir={BUCKET}']),
    (evaluate.main, ['--checkpoint=shapes', f'--output={BUCKET}']),
    (predict.main, ['--text=a', f'--image={BUCKET}']),
    (predict.main, ['--text=a', '--image=x.png', f'--output={BUCKET}']),
    (predict.main, ['--text=a', '--image=x.png', f'--json={BUCKET}']),
    (predict.main, [f'--prompts={BUCKET}']),
    (predict.main, ['--text=a', '--image=x.png', f'--checkpoint={BUCKET}']),
    (prepare.main, ['--dataset=refcoco', '--images=x', f'--annotations={BUCKET}']),
    (prepare.main, ['--dataset=refcoco', '--annotations=x', f'--images={BUCKET}']),
    (prepare.main, ['--dataset=refcoco', '--annotations=x', '--images=x', f'--data-dir={BUCKET}']),
    (export.main, ['--checkpoint=shapes', f'--output={BUCKET}']),
    (export.main, [f'--checkpoint={BUCKET}', '--output=x']),
  ],
)
def test_commands_refuse_buckets(tmp_path, monkeypatch, main, arguments):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(UserError, match=f'{BUCKET}.*gs:// is not supported; mount the bucket'):
    main(arguments)
  assert not list(tmp_path.iterdir())


def test_the_library_refuses_buckets_too():
  for call in (lambda: Segmenter(BUCKET), lambda: saved_model.load(BUCKET), lambda: read_config(BUCKET)):
    with pytest.raises(UserError, match='gs:// is not supported'):
      call()


@pytest.mark.multiprocess
@pytest.mark.parametrize('script', ['torch_to_flax', 'flax_to_torch'])
def test_converters_refuse_buckets(tmp_path, script):
  ended = subprocess.run(
    [sys.executable, ROOT / 'convert' / f'{script}.py', f'--input={BUCKET}', '--output=x'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert ended.returncode == 2 and ended.stderr.count('\n') == 1, ended.stderr
  assert "error: 'gs://bucket/x': gs:// is not supported" in ended.stderr and not list(tmp_path.iterdir())
