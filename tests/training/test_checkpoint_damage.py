"""Damaged checkpoints are detected and skipped; leftovers of killed runs are removed."""

import json
import os
import shutil

import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.storage import manifest
from tests.training.checkpoints import flip, open_, resumed, save_steps, saved, truncate


def change_position(checkpoint):
  text = (checkpoint / 'run.json').read_text()
  (checkpoint / 'run.json').write_text(text.replace('"step": 2', '"step": 3'))


@pytest.mark.parametrize(
  'damage, expected',
  [
    (flip, 'has changed: its checksum differs'),
    (truncate, 'bytes instead of'),
    (lambda checkpoint: shutil.rmtree(checkpoint / 'state'), 'is missing'),
    (lambda checkpoint: (checkpoint / manifest.NAME).unlink(), 'manifest.json is missing'),
    (lambda checkpoint: (checkpoint / manifest.NAME).write_text('{"files": {'), 'damaged or not JSON'),
    (change_position, 'run.json has changed'),
  ],
  ids=['flipped bit', 'truncated', 'deleted', 'no manifest', 'half a manifest', 'other position'],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(tmp_path, capfd, damage, expected):
  save_steps(tmp_path, 1, 2)
  damage(tmp_path / 'checkpoints' / '2')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = [line for line in capfd.readouterr().err.splitlines() if 'damaged' in line]
  assert 'checkpoints/2 ' in line and expected in line
  save_steps(tmp_path, 2)  # save the same step again, like a resumed run
  capfd.readouterr()
  assert resumed(tmp_path) == (2, 2.0, 1)
  assert capfd.readouterr().err == ''


def replaced(make):
  """Damage that replaces a file by something else."""

  def damage(path):
    path.unlink()
    make(path)

  return damage


DAMAGE = {
  'a flipped bit': lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 16]) + path.read_bytes()[1:]),
  'a byte less': lambda path: os.truncate(path, path.stat().st_size - 1),
  'emptied': lambda path: os.truncate(path, 0),
  'removed': lambda path: path.unlink(),
  'a folder': replaced(lambda path: path.mkdir()),
  'a pipe': replaced(os.mkfifo),
  'a device': replaced(lambda path: path.symlink_to('/dev/zero')),
  'a link to nothing': replaced(lambda path: path.symlink_to('nowhere')),
}


def test_any_damage_to_any_file_is_detected(tmp_path, capfd):
  save_steps(tmp_path / 'run', 1, 2)
  files = [path.relative_to(tmp_path) for path in (tmp_path / 'run/checkpoints/2').rglob('*') if path.is_file()]
  assert len(files) > 8
  with open_(tmp_path / 'run') as checkpoints:
    for file in files:
      for name, damage in DAMAGE.items():
        if (tmp_path / file).stat().st_size == 0 and name in ('a flipped bit', 'a byte less', 'emptied'):
          continue
        shutil.copytree(tmp_path / 'run', tmp_path / 'kept')
        damage(tmp_path / file)
        assert checkpoints._intact_steps() == [1], f'{file}: {name}'
        (line,) = capfd.readouterr().err.splitlines()
        assert 'checkpoints/2 is damaged' in line and file.name in line, f'{file}: {name}: {line}'
        shutil.rmtree(tmp_path / 'run')
        (tmp_path / 'kept').rename(tmp_path / 'run')


def rewrite(checkpoint, change):
  """Changes run.json and the manifest, so that checksums still match."""
  run = json.loads((checkpoint / 'run.json').read_text())
  content = change(run)
  (checkpoint / 'run.json').write_text(content if isinstance(content, str) else json.dumps(run))
  manifest.write(checkpoint)


@pytest.mark.parametrize(
  'change',
  [
    lambda run: '[' * 100_000,
    lambda run: '[]',
    lambda run: 'null',
    lambda run: run.update(step='2'),
    lambda run: run.update(step=10**400),
    lambda run: run.pop('position') and None,
    lambda run: run.update(position=[1]),
    lambda run: run.update(progress={'evaluated': -2}),
    lambda run: run.update(progress={'evaluated': 0, 'best_score': 'high'}),
    lambda run: run.update(progress={'evaluated': 0, 'other\nerror: pwned': 1}),
    lambda run: run.update(config=None),
    lambda run: run.update(position={'next_index': 'first'}),
  ],
)
def test_an_invalid_run_json_counts_as_damage(tmp_path, capfd, change):
  save_steps(tmp_path, 1, 2)
  rewrite(tmp_path / 'checkpoints' / '2', change)
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 ' in line and 'trying the previous one' in line, line


@pytest.mark.parametrize(
  'content',
  [
    '[' * 100_000,
    '{}',
    '{"files": []}',
    '{"files": {}}',
    '{"files": {"run.json": 7}}',
    '{"files": {"run.json": [1, null]}}',
    '{"files": {"run.json": [1e999, ""]}}',
    '{"files": {"run.json": [1, ""], "../1/run.json": [1, ""]}}',
    '{"files": {"/dev/zero": [0, ""], "run.json": [1, ""]}}',
    '\ud800',
  ],
)
def test_an_invalid_manifest_counts_as_damage(tmp_path, capfd, content):
  save_steps(tmp_path, 1, 2)
  (tmp_path / 'checkpoints/2/manifest.json').write_text(content, errors='surrogatepass')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 is damaged' in line


def test_damage_that_only_orbax_detects_is_skipped_too(tmp_path, capfd):
  save_steps(tmp_path, 1, 2)
  truncate(tmp_path / 'checkpoints' / '2')
  manifest.write(tmp_path / 'checkpoints' / '2')
  assert resumed(tmp_path) == (1, 1.0, 1)
  (line,) = capfd.readouterr().err.splitlines()
  assert 'checkpoints/2 cannot be read' in line


def test_other_files_and_folders_are_not_checkpoints(tmp_path, capfd):
  save_steps(tmp_path, 1)
  folder = tmp_path / 'checkpoints'
  (folder / '2').write_text('a file of that name')
  (folder / '3.writing').write_text('')
  for name in ('9' * 30, '007', 'notes', '\u0663'):
    (folder / name).mkdir()
  assert resumed(tmp_path) == (1, 1.0, 1)
  assert 'checkpoints/2 is damaged (it is not a folder)' in capfd.readouterr().err
  save_steps(tmp_path, 2)
  assert resumed(tmp_path) == (2, 2.0, 1)


def test_a_run_without_an_intact_checkpoint_is_refused(tmp_path):
  save_steps(tmp_path, 1, 2)
  for number in '12':
    flip(tmp_path / 'checkpoints' / number)
  with pytest.raises(UserError, match='no checkpoint in .* is intact') as error:
    open_(tmp_path)
  assert '\n' not in str(error.value) and 'delete' in str(error.value)
  assert saved(tmp_path) == ['1', '2']  # kept, in case someone can repair them


@pytest.mark.parametrize('manifest_too', [False, True])
def test_unfinished_checkpoints_of_a_killed_process_are_removed(tmp_path, capfd, manifest_too):
  """They are removed even if Orbax had finished writing."""
  save_steps(tmp_path, 1, 2)
  folder = tmp_path / 'checkpoints'
  os.rename(folder / '2', folder / '2.writing')
  if not manifest_too:
    (folder / '2.writing' / manifest.NAME).unlink()
  shutil.copytree(folder / '1', folder / '0.deleting')
  assert resumed(tmp_path) == (1, 1.0, 1)
  assert saved(tmp_path) == ['1'] and 'damaged' not in capfd.readouterr().err
