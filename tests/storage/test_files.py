"""A file that cannot be written leaves the old one and nothing else."""

from pathlib import Path

import pytest

from ditsam_jax.storage.files import write_text, written_whole


def test_a_file_that_cannot_be_written_is_named_and_leaves_the_old_one(tmp_path, monkeypatch):
  file = tmp_path / 'metrics.json'
  write_text(file, 'old')

  def full(path, text):
    path.write_bytes(text.encode()[:2])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Path, 'write_text', full)
  with pytest.raises(OSError) as error:
    write_text(file, 'new')
  assert error.value.filename == str(file) and file.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [file]


def test_any_other_failure_leaves_the_old_file_too(tmp_path):
  file = tmp_path / 'model.pth'
  file.write_text('old')
  with pytest.raises(KeyError), written_whole(file) as unfinished:
    unfinished.write_text('half')
    raise KeyError('weights')
  assert file.read_text() == 'old' and list(tmp_path.iterdir()) == [file]
