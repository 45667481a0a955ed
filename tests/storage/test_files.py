"""Files are written atomically; reading refuses anything but valid, regular files of limited size."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import make_output_folder, read_json, write_text, written_whole


def test_a_failed_write_names_the_file_and_keeps_the_old_one(tmp_path, monkeypatch):
  file = tmp_path / 'metrics.json'
  write_text(file, 'old')

  def full(path, text, **how):
    path.write_bytes(text.encode()[:2])
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(Path, 'write_text', full)
  with pytest.raises(OSError) as error:
    write_text(file, 'new')
  assert error.value.filename == str(file) and file.read_text() == 'old'
  assert list(tmp_path.iterdir()) == [file]


def test_any_exception_keeps_the_old_file(tmp_path):
  file = tmp_path / 'model.pth'
  file.write_text('old')
  with pytest.raises(KeyError), written_whole(file) as unfinished:
    unfinished.write_text('half')
    raise KeyError('weights')
  assert file.read_text() == 'old' and list(tmp_path.iterdir()) == [file]


def test_text_is_utf_8_in_every_locale(tmp_path):
  program = 'import sys; from ditsam_jax.storage.files import *; write_text(Path(sys.argv[1]), "caf\\xe9")'
  ascii = {'LC_ALL': 'C', 'PYTHONCOERCECLOCALE': '0', 'PYTHONUTF8': '0'}
  subprocess.run([sys.executable, '-c', program, tmp_path / 'vocab.txt'], env=os.environ | ascii, check=True)
  assert (tmp_path / 'vocab.txt').read_bytes() == 'caf\xe9'.encode()


def refusal(read, *arguments, **options):
  with pytest.raises(UserError) as error:
    read(*arguments, **options)
  message = str(error.value)
  assert message.isprintable() and len(message) < 400
  return message


def test_an_output_folder_that_cannot_be_used_is_refused(tmp_path, monkeypatch):
  make_output_folder(tmp_path / 'new' / 'place')
  assert (tmp_path / 'new' / 'place').is_dir()
  (tmp_path / 'file').write_text('')
  with pytest.raises(ValueError) as error:
    os.mkdir('nul\0')
  nul = str(error.value)  # depends on Python's version
  for folder, reason in (('file', 'File exists'), ('file/below', 'Not a directory'), ('nul\0', nul)):
    message = refusal(make_output_folder, tmp_path / folder)
    assert 'cannot be created' in message and f'{reason}); choose another --output' in message
  monkeypatch.setattr(os, 'access', lambda path, mode: False)  # root may write anywhere
  assert 'cannot be written to; choose another --output' in refusal(make_output_folder, tmp_path)


def test_json_is_read_and_hooks_replace_objects(tmp_path):
  file = tmp_path / 'file.json'
  file.write_text('{"a": [1, 2.5, "caf\xe9 \\ud83d\\ude00", null, {"b": true}]}', encoding='utf-8')
  assert read_json(file) == {'a': [1, 2.5, 'caf\xe9 \U0001f600', None, {'b': True}]}
  assert read_json(file, hook=len) == 1
  assert read_json(str(file)) == read_json(file)


@pytest.mark.parametrize(
  'content, expected',
  [
    (b'', 'not JSON'),
    (b'{"a": 1', 'not JSON'),
    (b'[' * 100_000, 'nested too deeply'),
    (b'{"a":' * 100_000, 'nested too deeply'),
    (b'\xff\xfe{}', 'not UTF-8'),
    (b'"caf\xe9"', 'not UTF-8'),
    (b'["\\ud800"]', 'surrogate'),
    (b'{"\\uDFFF": 1}', 'surrogate'),
    (b'[1e999]', '1e999 is too large'),
    (b'[-1e999]', 'too large'),
    (b'[NaN]', 'NaN is not a number'),
    (b'[-Infinity]', '-Infinity is not a number'),
    (b'[' + b'9' * 5000 + b']', 'limit (4300 digits)'),
    (b'{"a": 1, "b": 2, "a": 3}', "is not valid JSON: an object has the key 'a' twice"),
    (b'{"\\n\\u001b[31m": 1, "\\n\\u001b[31m": 3}', 'twice'),
  ],
)
def test_invalid_json_is_reported_in_one_line(tmp_path, content, expected):
  file = tmp_path / 'file.json'
  file.write_bytes(content)
  message = refusal(read_json, file)
  assert expected in message and str(file) in message


def test_non_finite_numbers_are_accepted_if_asked_for(tmp_path):
  (tmp_path / 'file.json').write_text('[1e999, NaN]')
  assert np.isposinf(read_json(tmp_path / 'file.json', finite=False)[0])


def test_only_regular_files_of_limited_size_are_read(tmp_path):
  os.mkfifo(tmp_path / 'pipe')
  (tmp_path / 'large').write_bytes(b' ' * 101)
  with socket.socket(socket.AF_UNIX) as unix:
    unix.bind(str(tmp_path / 'socket'))
  for path, expected in [
    (tmp_path / 'pipe', 'a device or a pipe'),
    (tmp_path / 'socket', 'a pipe or a socket'),
    ('/dev/zero', 'a device or a pipe'),
    (tmp_path, 'a folder'),
    (tmp_path / 'none', 'no such file'),
    (tmp_path / 'x\n\x1b[31m', 'no such file'),
    (tmp_path / ('x' * 5000), 'too long'),
    ('nul\0', 'null'),
    (tmp_path / 'large', '101 bytes, expected at most 100'),
  ]:
    assert expected in refusal(read_json, path, most_bytes=100)
