"""The train command on a tiny model and data set: results, resuming, refusals."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax import train
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.storage import manifest, saved_model
from ditsam_jax.storage.description import fresh_parts, read_config, read_description
from ditsam_jax.storage.places import resolve
from ditsam_jax.train import main

ROOT = Path(__file__).parent.parent
SMALL = [
  '--config.init_from=',
  '--config.data.scenes.image_size=64',
  '--config.data.scenes.train=12',
  '--config.data.scenes.val=4',
  '--config.data.scenes.test=4',
  '--config.model.image_size=64',
  '--config.model.image_encoder.width=48',
  '--config.model.image_encoder.depth=1',
  '--config.model.image_encoder.global_blocks=[0]',
  '--config.model.text_encoder.width=48',
  '--config.model.text_encoder.depth=1',
  '--config.model.mask_decoder.width=48',
  '--config.model.mask_decoder.depth=1',
  '--config.data.batch_size=4',
  '--config.eval_batch_size=16',
  '--config.eval_samples=8',
  '--config.total_steps=6',
  '--config.optimizer.warmup_steps=2',
  '--config.eval_every=0',
  '--config.log_every=2',
  '--config.checkpoint_every=3',
  '--config.optimizer.name=adam',
]


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  return tmp_path_factory.mktemp('data')


def run(data_dir, workdir, *more, config='configs/ldit.py:shapes'):
  return main(
    [f'--config={ROOT / config}', f'--workdir={workdir}', f'--config.data.data_dir={data_dir}', *SMALL, *more]
  )


@pytest.fixture(scope='module')
def finished(data_dir, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  assert run(data_dir, workdir, '--config.eval_every=4') == 0
  return workdir


def weights(workdir):
  return {name: np.asarray(array) for name, array in saved_model.read_weights(workdir).items()}


@pytest.mark.slow
def test_a_run_writes_the_documented_files(finished):
  metrics = json.loads((finished / 'metrics.json').read_text())
  assert metrics['steps'] == 6 and metrics['split'] == 'test' and metrics['seconds']['training'] > 0
  assert (finished / 'predictions.png').read_bytes().startswith(b'\x89PNG')
  lines = [json.loads(line) for line in (finished / 'train_log.jsonl').read_text().splitlines()]
  assert [line['step'] for line in lines if 'train/loss' in line] == [2, 4, 6]
  assert [line['step'] for line in lines if 'val/mIoU' in line] == [4]
  assert any((finished / 'tensorboard').iterdir())
  assert len(metrics['weights_sha256']) == 64 and metrics['updates_skipped'] == 0
  assert saved_model.load(finished).config.fusion == 'layer_wise'


@pytest.mark.slow
def test_the_best_weights_by_validation_are_kept(finished):
  best = json.loads((finished / 'metrics.json').read_text())['best']
  lines = [json.loads(line) for line in (finished / 'train_log.jsonl').read_text().splitlines()]
  (line,) = [line for line in lines if 'val/mIoU' in line]
  assert best == {'step': 4, 'val_mIoU': line['val/mIoU']}
  assert read_description(finished / 'best')['notes'] == {'steps': 4, 'val_mIoU': best['val_mIoU'], 'task': 'text'}
  assert saved_model.load(finished / 'best').config == saved_model.load(finished).config
  assert (finished / 'checkpoints' / '4').is_dir()  # although none was due at this step


@pytest.mark.slow
def test_rerunning_a_finished_run_keeps_its_weights(data_dir, finished):
  before = weights(finished)
  run(data_dir, finished, '--config.eval_every=4')
  after = weights(finished)
  assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.slow
def test_metrics_are_written_if_a_picture_cannot_be(data_dir, finished, tmp_path, capfd):
  shutil.copytree(finished, tmp_path / 'run')
  (tmp_path / 'run' / 'predictions.png').unlink()
  (tmp_path / 'run' / 'predictions.png').mkdir()
  (tmp_path / 'run' / 'metrics.json').unlink()
  assert run(data_dir, tmp_path / 'run', '--config.eval_every=4') == 0
  assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['steps'] == 6
  output, errors = capfd.readouterr()
  (warning,) = [line for line in errors.splitlines() if 'warning' in line]
  assert 'predictions.png' in warning and 'predictions.png' not in output


@pytest.mark.slow
def test_metrics_are_written_if_the_disk_is_too_full_for_the_model(data_dir, tmp_path, capfd):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))  # file size: below that of weights, above metrics.json
  try:
    with pytest.raises(UserError, match=r'the model cannot be written.*metrics\.json is written'):
      run(data_dir, tmp_path / 'run', '--config.final_split=val')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert json.loads((tmp_path / 'run' / 'metrics.json').read_text())['split'] == 'val'
  errors = capfd.readouterr().err
  assert errors.count('warning: the checkpoint of step') == 2 and 'Traceback' not in errors
  assert not [path for path in (tmp_path / 'run').iterdir() if 'writing' in path.name]


@pytest.mark.slow
@pytest.mark.parametrize(
  'what, error', [('checkpoint', 'stopped at step 6 of 6, which is not saved'), ('model', 'full')]
)
def test_a_stop_during_the_last_evaluation_says_what_is_not_saved(data_dir, tmp_path, monkeypatch, what, error):
  def evaluate(*args, **settings):
    signal.raise_signal(signal.SIGTERM)
    return evaluate_split(*args, **settings)

  def fail(*args, **settings):
    raise UserError('full') if what == 'model' else OSError('full')

  monkeypatch.setattr(train, 'evaluate_split', evaluate)
  monkeypatch.setattr(*{'model': (saved_model, 'save'), 'checkpoint': (manifest, 'write')}[what], fail)
  with pytest.raises(UserError, match=error):
    run(data_dir, tmp_path / 'run', '--config.final_split=val')


SIXTY = ['--config.total_steps=60', '--config.checkpoint_every=20', '--config.final_split=val']


@pytest.fixture(scope='module')
def whole(data_dir, tmp_path_factory):
  """An undisturbed run of 60 steps."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'whole'
  process = started(data_dir, workdir)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  return workdir


def started(data_dir, workdir):
  """Starts the run of 60 steps as a process: in this one, other tests may have compiled with other settings."""
  command = [sys.executable, '-m', 'ditsam_jax.train', f'--config={ROOT / "configs/ldit.py"}:shapes']
  return subprocess.Popen(
    [*command, f'--workdir={workdir}', f'--config.data.data_dir={data_dir}', *SMALL, *SIXTY],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def stopped(data_dir, workdir, number):
  """Starts or resumes the run, sends a signal when it has logged a new step; returns status, errors and saved step."""
  log = workdir / 'train_log.jsonl'
  before = log.read_text() if log.exists() else ''
  process = started(data_dir, workdir)
  deadline = time.time() + 120
  while not (log.exists() and log.read_text() > before) and time.time() < deadline:
    time.sleep(0.02)
  process.send_signal(number)
  _, errors = process.communicate(timeout=120)
  return process.returncode, errors, max(int(path.name) for path in (workdir / 'checkpoints').iterdir())


@pytest.mark.multiprocess
def test_a_run_stopped_twice_resumes_to_the_same_bits(data_dir, whole, tmp_path):
  workdir = tmp_path / 'stopped'
  status, errors, first = stopped(data_dir, workdir, signal.SIGINT)
  assert status == 130 and 'rerun the command to resume' in errors and 'compiling the training step' in errors, errors
  assert f'stopped at step {first} of 60' in errors and 0 < first < 60
  model = json.loads((workdir / 'model' / 'model.json').read_text())  # a person may want to look at it
  assert model['notes']['steps'] == first
  status, errors, second = stopped(data_dir, workdir, signal.SIGTERM)
  assert status == 0 and 'rerun the command to resume' in errors, errors
  assert f'stopped at step {second} of 60' in errors and first < second < 60
  process = started(data_dir, workdir)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  assert outcome(workdir) == outcome(whole)


def outcome(workdir):
  """The results that interruptions must not change."""
  return json.loads((workdir / 'metrics.json').read_text())['weights_sha256'], (workdir / 'train_log.jsonl').read_text()


@pytest.mark.slow
def test_an_evaluation_interrupted_by_sigterm_is_repeated(data_dir, finished, tmp_path, monkeypatch):
  def evaluate(*args, **settings):
    signal.raise_signal(signal.SIGTERM)
    return evaluate_split(*args, **settings)

  with monkeypatch.context() as patch:
    patch.setattr(train, 'evaluate_split', evaluate)
    assert run(data_dir, tmp_path / 'run', '--config.eval_every=4') == 0
  assert (tmp_path / 'run' / 'checkpoints' / '4').is_dir() and not (tmp_path / 'run' / 'best').exists()
  assert run(data_dir, tmp_path / 'run', '--config.eval_every=4') == 0
  assert outcome(tmp_path / 'run') == outcome(finished)
  assert read_description(tmp_path / 'run' / 'best')['notes']['steps'] == 4


@pytest.mark.slow
def test_a_diverged_run_saves_the_batch_and_stops(data_dir, tmp_path):
  with pytest.raises(UserError, match='not finite for 2 steps in a row'):
    run(
      data_dir,
      tmp_path / 'run',
      '--config.optimizer.learning_rate=1e30',
      '--config.optimizer.warmup_start=1e30',
      '--config.max_skipped=2',
    )
  (file,) = (tmp_path / 'run').glob('skipped_batch_*.npz')
  with np.load(file) as batch:
    assert batch['image'].shape == (4, 64, 64, 3) and np.isfinite(batch['image']).all()
  assert not (tmp_path / 'run' / 'metrics.json').exists()


@pytest.mark.slow
def test_a_workdir_with_another_config_is_refused(data_dir, finished):
  with pytest.raises(UserError, match=r'config\.seed was 0, is 1'):
    run(data_dir, finished, '--config.eval_every=4', '--config.seed=1')


@pytest.mark.slow
def test_a_frozen_encoder_keeps_its_weights_while_projections_train(data_dir, tmp_path):
  from flax import nnx

  from ditsam_jax.models.ditsam import DitSam

  run(data_dir, tmp_path / 'run', '--config.freeze=image_encoder', '--config.final_split=val')
  after = weights(tmp_path / 'run')
  start = saved_model.weights_of(DitSam(read_config(tmp_path / 'run'), rngs=nnx.Rngs(0)))
  moved = {name for name, array in after.items() if (array != np.asarray(start[name][...])).any()}
  assert not [name for name in moved if name.startswith('image_encoder.blocks')]
  assert [name for name in moved if name.startswith('image_encoder.instruction')]


@pytest.mark.slow
def test_text_training_starts_from_visual_pretraining(data_dir, tmp_path):
  small = [f for f in SMALL if 'text_encoder' not in f]
  assert (
    main(
      [
        f'--config={ROOT / "configs/sam_pretrain.py"}',
        f'--workdir={tmp_path / "sam"}',
        f'--config.data.data_dir={data_dir}',
        '--config.rounds=2',
        *small,
      ]
    )
    == 0
  )
  assert not (tmp_path / 'sam' / 'model' / 'vocab.txt').exists()
  assert fresh_parts(tmp_path / 'sam' / 'model') == []
  assert run(data_dir, tmp_path / 'text', f'--config.init_from={tmp_path / "sam"}', '--config.final_split=val') == 0


@pytest.mark.parametrize(
  'override, expected',
  [
    ('--config.optimizer.learning_rat=1', "did you mean 'learning_rate'"),
    ('--config.total_steps=many', 'config.total_steps'),
    ('--config.model.fusion=laywise', 'layer_wise'),
    ('--config.model.image_size=100', 'multiple of the patch size'),
    ('--config.data.scenes.max_shapes=1', 'max_shapes'),
    ('--config.freeze=everything', 'matches no parameter'),
    ('--config.init_from=nowhere', 'nowhere'),
    ('--config.on_save_failure=ignore', "'continue' or 'stop'"),
    ('--config.max_skipped=0', 'config.max_skipped is 0'),
  ],
)
def test_wrong_fields_and_values_are_named(data_dir, tmp_path, override, expected):
  with pytest.raises(UserError) as error:
    run(data_dir, tmp_path / 'run', override)
  assert expected in str(error.value)
  assert not (tmp_path / 'run' / 'model').exists()


def test_missing_refcoco_files_are_named(tmp_path):
  with pytest.raises(UserError, match='instances.json'):
    main([f'--config={ROOT / "configs/ldit.py"}', f'--workdir={tmp_path / "run"}'])
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'arguments, expected',
  [
    (['--config.final_split=testA'], "config.final_split is 'testA'.*shapes has train, val, test"),
    (['--config.final_split=tset'], "config.final_split is 'tset'.*shapes has train, val, test"),
    (['--config.init_from=nowhere'], "config.init_from: checkpoint 'nowhere' does not exist"),
    (['--config.init_from=DAMAGED'], 'config.init_from: .*model.json is damaged'),
    (
      ['--config.init_from=sam_shapes'],
      "config.model.image_encoder.width is 48; config.init_from='sam_shapes' does not fit config.model: it has 96",
    ),
    (['--config.freeze=everything'], 'matches no parameter'),
    (['--config.mesh.data=3'], 'needs 3 devices, but there are'),
    (['--workdir=FILE/run'], 'file. is not a folder'),
    (['--workdir=PIPE'], 'pipe. is not a folder'),
  ],
)
def test_impossible_runs_are_refused_before_data_is_prepared(tmp_path, arguments, expected):
  (tmp_path / 'damaged').mkdir()
  (tmp_path / 'damaged' / 'model.json').write_text('{')
  (tmp_path / 'file').touch()
  os.mkfifo(tmp_path / 'pipe')
  for name in ('damaged', 'file', 'pipe'):
    arguments = [text.replace(name.upper(), str(tmp_path / name)) for text in arguments]
  with pytest.raises(UserError, match=expected):
    run(tmp_path / 'data', tmp_path / 'run', *arguments)
  assert not (tmp_path / 'data').exists() and not (tmp_path / 'run').exists()


def test_a_start_without_weights_is_refused_before_data_is_prepared(tmp_path):
  shutil.copytree(resolve('sam_shapes'), tmp_path / 'start')
  shutil.rmtree(tmp_path / 'start' / 'weights')
  (tmp_path / 'start' / 'weights').mkdir()
  places = [f'--config.data.data_dir={tmp_path / "data"}', f'--workdir={tmp_path / "run"}']
  with pytest.raises(UserError, match='weights is missing or damaged'):
    main([f'--config={ROOT / "configs/ldit.py:shapes"}', *places, f'--config.init_from={tmp_path / "start"}'])
  assert not (tmp_path / 'data').exists() and not (tmp_path / 'run').exists()


def test_the_config_may_change_after_a_failure_before_the_first_step(data_dir, tmp_path, monkeypatch):
  def fail(*_):
    raise OSError('no such luck')

  monkeypatch.setattr(train, 'Checkpoints', fail)
  for seed in (0, 1):
    with pytest.raises(OSError, match='no such luck'):
      run(data_dir, tmp_path / 'run', f'--config.seed={seed}')
    assert json.loads((tmp_path / 'run' / 'config.json').read_text())['seed'] == seed


@pytest.mark.slow
def test_epochs_are_resolved_to_steps_in_the_saved_config(data_dir, tmp_path):
  """One epoch of 12 scenes; the same length given in steps resumes the run."""
  arguments = [f'--config.data.data_dir={data_dir}', f'--workdir={tmp_path / "run"}', '--config=ldit:shapes']
  arguments += [text for text in SMALL if 'steps' not in text and 'checkpoint_every' not in text]
  arguments += ['--config.checkpoint_every=None', '--config.data.batch_size=16']
  assert main([*arguments, '--config.epochs=1', '--config.final_split=val']) == 0
  resolved = json.loads((tmp_path / 'run' / 'config.json').read_text())
  epoch = resolved['checkpoint_every']
  assert resolved['total_steps'] == epoch > 1 and resolved['epochs'] is None
  assert resolved['optimizer']['warmup_steps'] == round(0.1 * epoch)
  steps = [f'--config.total_steps={epoch}', '--config.optimizer.warmup_share=0.5']
  assert (
    main([*arguments, *steps, f'--config.optimizer.warmup_steps={round(0.1 * epoch)}', '--config.final_split=val']) == 0
  )
  with pytest.raises(UserError, match='config.total_steps was'):
    main([*arguments, '--config.epochs=2', '--config.final_split=val'])
