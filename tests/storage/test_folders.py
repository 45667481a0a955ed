"""Folders are written whole; the next write recovers or removes what killed processes left, not what others use."""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax.exporting import folders as exports
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_description
from ditsam_jax.storage.folders import recover, temporary_folder, written_folder
from tests.small_models import SAM, random_model

ROOT = Path(__file__).parents[2]

WRITER = """
import os, signal, sys, time
from pathlib import Path
from ditsam_jax.storage import folders
target, moment, replace = Path(sys.argv[1]), sys.argv[2], os.replace

def killed(source, destination):
  replace(source, destination)
  if moment == 'between' and '.retired-' in str(destination) or moment == 'after' and destination == target:
    os.kill(os.getpid(), signal.SIGKILL)

os.replace = killed
with folders.written_folder(target, ('part',)) as folder:
  (folder / 'part').write_text('new')
  print('writing', flush=True)
  if moment == 'alive':
    time.sleep(600)
"""


def writer(target, moment):
  command = [sys.executable, '-c', WRITER, target, moment]
  return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


@pytest.fixture
def target(tmp_path):
  folder = tmp_path / 'model'
  folder.mkdir()
  (folder / 'part').write_text('old')
  (folder / 'notes.txt').write_text('mine')
  return folder


def content(target):
  return {path.name: path.read_text() for path in target.iterdir()}


def names(folder):
  return {path.name.partition('-')[0] for path in folder.iterdir()}


def write(target, text):
  with written_folder(target, ('part',)) as folder:
    (folder / 'part').write_text(text)


@pytest.mark.multiprocess
def test_a_kill_between_the_renames_is_undone(target):
  assert writer(target, 'between').wait() == -signal.SIGKILL
  assert names(target.parent) == {'.model.retired', '.model.writing'}
  recover(target, ('part',))
  assert content(target) == {'part': 'old', 'notes.txt': 'mine'} and names(target.parent) == {'model'}


@pytest.mark.multiprocess
def test_a_kill_after_the_renames_loses_no_other_files(target):
  assert writer(target, 'after').wait() == -signal.SIGKILL
  assert content(target) == {'part': 'new'}
  write(target, 'newer')
  assert content(target) == {'part': 'newer', 'notes.txt': 'mine'} and names(target.parent) == {'model'}


@pytest.mark.multiprocess
def test_folders_of_living_processes_stay_until_they_are_killed(target):
  process = writer(target, 'alive')
  try:
    assert process.stdout.readline() == 'writing\n'
    write(target, 'ours')
    assert names(target.parent) == {'model', '.model.writing'}
  finally:
    process.kill()
    process.wait()
  write(target, 'ours')
  assert names(target.parent) == {'model'}


@pytest.fixture
def dead():
  """The number of a process that has ended."""
  process = subprocess.Popen(['true'])
  process.wait()
  return process.pid


def save(target):
  model = random_model(SAM)
  weights = {name: variable[...] for name, variable in weights_of(model).items()}
  saved_model.write(target, model.config, weights, notes={'new': True})


def export(target):
  with exports.written_folder(str(target), lambda folder: (folder / 'part').is_file(), ('part',)) as folder:
    (folder / 'part').write_text('new')


@pytest.mark.parametrize('write', [save, export])
def test_leftovers_of_earlier_versions(tmp_path, dead, write):
  """Their names end in the number of their process."""
  foreign = '.model.writing-x', '.other.writing-99', f'.model.writing-{os.getppid()}', 'model.writing-7'
  for name in (f'.model.writing-{dead}', f'.model.retired-{dead}', *foreign):
    (tmp_path / name / 'weights').mkdir(parents=True)
  if write is export:
    (tmp_path / f'.model.retired-{dead}' / 'part').touch()
  write(tmp_path / 'model')
  assert {path.name for path in tmp_path.iterdir()} == {'model', *foreign}


def test_a_model_comes_back_when_its_replacement_fails(tmp_path, dead):
  save(tmp_path / 'model')
  (tmp_path / 'model').rename(tmp_path / f'.model.retired-{dead}')
  with pytest.raises(KeyError), written_folder(tmp_path / 'model', saved_model.CONTENTS):
    raise KeyError('weights')
  assert read_description(tmp_path / 'model')['notes'] == {'new': True} and names(tmp_path) == {'model'}


def test_folders_have_the_usual_permissions(tmp_path):
  (tmp_path / 'usual').mkdir()
  write(tmp_path / 'model', 'new')
  assert (tmp_path / 'model').stat().st_mode == (tmp_path / 'usual').stat().st_mode


def test_a_link_to_a_folder_is_replaced(target):
  (target.parent / 'link').symlink_to(target)
  write(target.parent / 'link', 'new')
  assert content(target.parent / 'link') == {'part': 'new', 'notes.txt': 'mine'}
  assert content(target) == {'part': 'old'} and names(target.parent) == {'link', 'model'}


def test_temporary_folders_have_names_that_others_cannot_guess(tmp_path, monkeypatch):
  monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
  with temporary_folder() as first, temporary_folder() as second:
    assert first != second and stat.S_IMODE(first.stat().st_mode) == 0o700
  assert not list(tmp_path.iterdir())
