"""Own data from the prepare command to training and evaluation; failed runs leave no data set."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from ditsam_jax import prepare
from ditsam_jax.config import checks, files, lengths
from ditsam_jax.data import datasets
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.declaration import Counts
from ditsam_jax.data.own import builder
from ditsam_jax.data.pipeline import train_batches
from ditsam_jax.data.preparation import writer
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.tokenization import Tokenizer
from tests import screens
from tests.data.own.pictures import compressed, make, polygon
from tests.small_models import small_config

ROOT = Path(__file__).parents[3]


def rows(own):
  splits = ('train', 'train', 'train', 'val', 'val', 'test')
  found = []
  for index, split in enumerate(splits):
    mask = own.masks[f'{index}.png']
    found.append({'image': f'{index}.png', 'text': f'box {index}', 'mask': polygon(mask), 'split': split})
    found.append(
      {'image': f'{index}.png', 'text': ['a ghost', 'no one'][: 1 + index % 2], 'mask': None, 'split': split}
    )
  return found


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  own = make(tmp_path_factory.mktemp('own'))
  assert prepare.main(own.arguments(own.write_lines(rows(own)))) == 0
  return own, own.root / 'data'


@pytest.fixture
def own(tmp_path):
  return make(tmp_path)


# ---------------------------------------------------------------------------------------------------------- declaration


def test_splits_sizes_and_targets_come_from_the_prepared_folder(prepared):
  _, data_dir = prepared
  data_set, partition = datasets.find('mine', data_dir)
  assert data_set.generalised and data_set.splits == tuple(partition.splits) == ('train', 'val', 'test')
  assert datasets.size('mine', data_dir, 'train') == Counts(3, 6, 7, no_target=4)
  assert datasets.size('mine', data_dir, 'testA') is None
  datasets.check_data('mine', data_dir, ['train', 'val'])
  with pytest.raises(UserError, match="split 'testA' is unknown; mine has train, val, test"):
    datasets.check_splits('mine', ['testA'], data_dir)


def test_configs_accept_own_data_and_its_epochs(prepared):
  _, data_dir = prepared
  config = checks.check(files.load('ldit:mine', [f'data.data_dir={data_dir}']))
  assert lengths.samples_without_data(config) == 6
  resolved = lengths.resolve(
    files.load('ldit:mine', [f'data.data_dir={data_dir}', 'epochs=5', 'data.batch_size=4']), lambda: 6
  )
  assert resolved.total_steps == 10
  with pytest.raises(UserError, match="config.final_split is 'testB'.*mine has train, val, test"):
    files.load('ldit:mine', [f'data.data_dir={data_dir}', 'final_split=testB'])


def test_an_unprepared_data_set_is_refused_with_the_prepared_names(prepared, tmp_path):
  _, data_dir = prepared
  with pytest.raises(
    UserError, match="'mime' is unknown and not prepared in .*did you mean 'mine'.*grefcoco, mine, or"
  ):
    datasets.open_split('mime', data_dir, 'train')
  with pytest.raises(UserError, match='config.data.dataset.*python -m ditsam_jax.prepare --name=mine'):
    files.load('ldit:mine', [f'data.data_dir={tmp_path}'])
  with pytest.raises(UserError, match="data set 'Mine' is unknown; choose one of"):
    files.load('ldit:Mine', [])


def test_all_commands_use_the_same_default_folder(own, monkeypatch):
  monkeypatch.chdir(own.root)
  file = own.write_lines(rows(own))
  assert prepare.main(['--name=mine', f'--annotations={file.name}', '--images=photos', '--data-dir=data']) == 0
  assert checks.check(files.load('ldit:mine', [])).data.data_dir == 'data'
  from ditsam_jax import evaluate

  options = evaluate._parse(['--checkpoint=shapes', '--dataset=mine', '--split=val'])
  assert list(evaluate._open('mine', options, {})) == ['val']


# ------------------------------------------------------------------------------------------------------------ no target


def test_evaluation_counts_null_as_no_target(prepared):
  own, data_dir = prepared
  source = datasets.open_split('mine', data_dir, 'val')
  config = small_config(max_text_tokens=8)
  tokenizer = Tokenizer(datasets.vocabulary('shapes'), 8)
  size = config.image_size

  def says(value):
    return lambda batch: np.full((len(batch['image']), size, size), value, np.float32)

  for value, n_acc, t_acc in ((-9, 100, 0), (9, 0, 100)):
    found = evaluate_split(says(value), source, tokenizer, config, batch_size=4, progress=False, generalised=True)
    assert len(found.samples) == 5 and sum(not sample.target_pixels for sample in found.samples) == 3
    figures = found.metrics()
    assert (figures['N-acc'], figures['T-acc']) == (n_acc, t_acc)
    areas = [own.masks[f'{index}.png'].mean() for index in (3, 4)]
    expected = 100 * (3 if value < 0 else sum(areas)) / 5  # gIoU: 1 for each correct empty prediction
    assert found.miou == pytest.approx(expected)


def test_training_batches_have_empty_masks_for_null(prepared):
  _, data_dir = prepared
  source = datasets.open_split('mine', data_dir, 'train')
  batches = train_batches(
    source,
    Tokenizer(datasets.vocabulary('shapes'), 8),
    image_size=64,
    pixel_mean=(0.5,) * 3,
    pixel_std=(0.5,) * 3,
    augmentation=AugmentationConfig(scale_steps=1),
    batch_size=6,
    seed=0,
    threads=0,
  )
  masks = next(batches)['mask']
  assert sorted(mask.any() for mask in masks) == [False] * 3 + [True] * 3


# -------------------------------------------------------------------------------------------------------- atomic writes


def files_in(folder):
  return sorted(path.name for path in folder.rglob('*') if path.is_file())


def test_problems_leave_no_data_set_and_skip_bad_writes_the_rest(own):
  some = rows(own)
  some[0]['mask'] = 'masks/nowhere.png'
  some[3]['text'] = ' '
  some[4]['image'] = 'nowhere.png'
  some[5]['image'] = 'nowhere.png'
  file = own.write_lines([*some, '{'])
  said = []
  arguments = ('mine', file, own.photos, own.root / 'data')
  with pytest.raises(UserError, match='4 problems.*nothing was written.*--skip-bad'):
    builder.prepare(*arguments, processes=0, say=said.append)
  kinds = '1 (missing or unreadable mask files|blank sentences|missing image files|unreadable lines)'
  assert len([line for line in said if re.match(kinds, line)]) == 4
  assert files_in(own.root / 'data') == ['preview.png', 'report.txt']
  done = builder.prepare(*arguments, processes=0, skip_bad=True)
  assert sum(done.left_out.values()) == 4
  assert done.whole == Counts(5, 8, 10, no_target=6)
  assert len(datasets.open_split('mine', own.root / 'data', 'train')) == 2


def test_skip_bad_is_not_advised_where_it_does_not_help(own):
  bad = {'image': 'nowhere.png', 'text': 'a', 'mask': None, 'split': 'val'}
  some = [{'image': '0.png', 'text': 'a', 'mask': None, 'split': 'train'}, bad]
  for lines, skip_bad, expected in (
    (some, True, r'no usable image in val \(1 problem\); nothing was written. Fix them$'),
    ([bad | {'text': ''}], False, r'no image has a usable object \(1 problem\); nothing was written. Fix them$'),
    ([], False, r'no image has a usable object \(0 problems\); nothing was written. Check --annotations$'),
  ):
    with pytest.raises(UserError, match=expected):
      file = own.write_lines(lines)
      builder.prepare('mine', file, own.photos, own.root / 'data', format='jsonl', processes=0, skip_bad=skip_bad)


def test_check_writes_no_data_set(own, capsys):
  assert prepare.main(own.arguments(own.write_lines(rows(own)), '--check')) == 0
  out = capsys.readouterr().out
  assert 'checked; no data set was written' in out and re.search(r'all +6 +12 +15 +9\n', out)
  assert files_in(own.root / 'data') == ['preview.png', 'report.txt']


def test_preparing_again_changes_nothing_and_other_annotations_are_refused(own, capsys):
  file = own.write_lines(rows(own))
  assert prepare.main(own.arguments(file)) == 0
  capsys.readouterr()
  assert prepare.main(own.arguments(file)) == 0
  assert 'unchanged: ' in capsys.readouterr().out
  file.write_text(file.read_text().replace('box 1', 'box one'))
  with pytest.raises(UserError, match='prepared from other annotations.*delete that folder'):
    prepare.main(own.arguments(file))
  assert prepare.main(own.arguments(file, '--check')) == 0  # writes no data set


def test_other_masks_for_the_same_annotations_are_refused(own):
  file = own.write_lines(rows(own))
  assert prepare.main(own.arguments(file)) == 0
  (own.root / 'better').mkdir()
  with pytest.raises(UserError, match='with other options.*delete that folder'):
    prepare.main(own.arguments(file, f'--masks={own.root / "better"}'))


@pytest.mark.multiprocess
def test_records_do_not_depend_on_worker_processes_or_shards(own, monkeypatch):
  file = own.write_lines(rows(own))
  builder.prepare('mine', file, own.photos, own.root / 'data', processes=0)
  monkeypatch.setattr(writer, '_SHARD', 2)
  done = builder.prepare('mine', file, own.photos, own.root / 'other', processes=2)
  assert len(list(done.directory.glob('mine-train*'))) == 2
  for split in ('train', 'val', 'test'):
    one, two = (datasets.open_split('mine', own.root / name, split) for name in ('data', 'other'))
    assert [one.image(i)._features for i in range(one.num_images)] == [
      two.image(i)._features for i in range(two.num_images)
    ]


def noise(own, number):
  """Adds large images, so that a run takes a while; returns their entries."""
  big = cv2.imencode('.jpg', np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8))[1].tobytes()
  for index in range(number):
    (own.photos / f'big {index}.jpg').write_bytes(big)
  return [{'image': f'big {index}.jpg', 'text': 'noise', 'mask': None, 'split': 'train'} for index in range(number)]


@pytest.mark.multiprocess
def test_a_full_disk_is_reported_in_one_line_and_leaves_nothing(own):
  file = own.write_lines([*rows(own), *noise(own, 3)])

  script = (
    'import resource, signal, sys; from ditsam_jax import command_line, prepare; '
    'signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)); '
    'command_line.run(prepare.main)'
  )
  done = subprocess.run(
    [sys.executable, '-c', script, *own.arguments(file)],
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    capture_output=True,
    text=True,
    timeout=120,
  )
  last = done.stderr.splitlines()[-1]
  assert done.returncode == 2 and 'File too large' in last and 'expected a writable folder' in last, done.stderr
  assert 'Traceback' not in done.stderr and not list((own.root / 'data').rglob('*array_record*'))


@pytest.mark.multiprocess
@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_an_interrupted_run_leaves_no_data_set_and_the_next_run_writes_it(own, number, status):
  file = own.write_lines([*rows(own), *noise(own, 400)])
  arguments = [one for one in own.arguments(file) if not one.startswith('--processes')]
  process, screen = screens.start(
    sys.executable,
    '-m',
    'ditsam_jax.prepare',
    *arguments,
    '--processes=2',
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    start_new_session=True,
  )
  errors = b''
  while not re.search(rb' [1-9][0-9]*/406', errors):  # until the progress bar shows work done
    errors += screens.shown(screen) or pytest.fail(errors.decode())
  if number == signal.SIGKILL:
    process.kill()
  else:
    os.killpg(process.pid, number)  # like a terminal, also signals the workers
  errors += screens.rest(screen)  # until the workers, which also hold it, are gone
  assert process.wait(timeout=60) == status, errors.decode()
  assert b'Traceback' not in errors
  parts = own.root / 'data' / 'mine'
  assert not (parts / '1.0.0').exists()
  with pytest.raises(UserError, match='not prepared'):
    datasets.open_split('mine', own.root / 'data', 'train')
  assert prepare.main(own.arguments(own.write_lines(rows(own)))) == 0
  assert sorted(path.name for path in parts.iterdir()) == ['1.0.0', 'objects.csv', 'preview.png', 'report.txt']


def test_images_with_hundreds_of_objects_are_prepared_quickly(own):
  masks = [compressed(own.masks[f'{index}.png']) for index in range(6)]
  lines = [{'image': f'{index % 6}.png', 'text': f'box {index}', 'mask': masks[index % 6]} for index in range(1800)]
  started = time.process_time()
  builder.prepare('mine', own.write_lines(lines), own.photos, own.root / 'data', processes=0)
  assert time.process_time() - started < 10


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
  'change, message',
  [
    (['--name=Mine'], '--name=Mine: expected up to 61 lower-case letters'),
    (['--name=refcoco'], 'is the name of another data set'),
    (['--format=xml'], '--format=xml is unknown; choose one of jsonl, csv, coco'),
    (['--format=jsnl'], "did you mean 'jsonl'"),
    (['--annotations=nowhere.jsonl'], '--annotations=nowhere.jsonl: no such file'),
    (['--annotations=/dev/zero'], 'a device or a pipe'),
    (['--images=nowhere'], '--images=nowhere: no such file'),
    (['--images=~nobody-of-that-name/x'], 'nobody-of-that-name'),
    (['--masks=nowhere'], '--masks=nowhere: no such file'),
    (['--model=nowhere'], "checkpoint 'nowhere' does not exist"),
    (['--processes=65'], '--processes=65: expected 0 to 64'),
    (['--split-by=unc'], '--split-by goes with --dataset'),
  ],
)
def test_bad_options_are_refused_in_one_line_and_write_nothing(own, change, message):
  file = own.write_lines(rows(own))
  with pytest.raises(UserError) as error:
    prepare.main([*own.arguments(file), *change])
  assert message in str(error.value) and not (own.root / 'data').exists()


def test_options_of_own_data_are_refused_for_refcoco():
  for option in ('--check', '--format=jsonl', '--masks=x', '--seed=3', '--model=x'):
    with pytest.raises(UserError, match=f'{option.split("=")[0]} goes with --name, not with --dataset=refcoco'):
      prepare.main(['--dataset=refcoco', '--annotations=x', '--images=y', option])
  with pytest.raises(UserError, match='--images is missing'):
    prepare.main(['--dataset=refcoco', '--annotations=x'])


def test_a_foreign_folder_is_not_mistaken_for_the_data_set(own):
  folder = own.root / 'data' / 'mine' / '1.0.0'
  folder.mkdir(parents=True)
  (folder / 'dataset_info.json').write_text('{}')
  with pytest.raises(UserError, match='was not written by this command'):
    prepare.main(own.arguments(own.write_lines(rows(own))))
  with pytest.raises(UserError, match='not prepared'):
    datasets.find('mine', own.root / 'data')
  (folder / 'metadata.json').write_text('{"splits": {"train": {"images": "x", "objects": []}}, "own": 3}')
  with pytest.raises(UserError):
    datasets.open_split('mine', own.root / 'data', 'train')
