"""How commands fail: one line for user errors, a traceback for bugs, quiet libraries."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditsam_jax import __main__, options

ROOT = Path(__file__).parents[1]


def run(body, **environment):
  """Runs a command whose main consists of these lines; returns its status, output and errors."""
  lines = ''.join(f'  {line}\n' for line in body.splitlines())
  program = f'import errno, logging, sys, warnings\nfrom ditsam_jax import command_line\ndef main():\n{lines}'
  done = subprocess.run(
    [sys.executable, '-c', program + 'command_line.run(main)'],
    cwd=ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    timeout=60,
  )
  return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize(
  'body, line',
  [
    ("open('/nowhere/at/all')", '/nowhere/at/all: No such file or directory'),
    ("open('/')", '/: Is a directory'),
    ("open('a\\nerror: pwned')", r'a\nerror: pwned: No such file or directory'),
    ("raise OSError(errno.ENOSPC, 'No space left on device')", 'No space left on device'),
    ("raise OSError(errno.ENOSPC, 'No space left on device', 'a', None, 'b')", 'b: No space left on device'),
    ("raise PermissionError(13, 'Permission denied', 'file')", 'file: Permission denied; choose another place'),
    ('raise MemoryError', 'there is not enough memory; use smaller'),
    ("raise MemoryError('an array of 9 TiB')", 'there is not enough memory (an array of 9 TiB)'),
    ('def deeper(): deeper()\ndeeper()', 'something in the input is nested too deeply'),
    ("raise RuntimeError('RESOURCE_EXHAUSTED: Out of memory allocating 1 bytes')", 'the device is out of memory'),
    ("from ditsam_jax import UserError\nraise UserError('bad\\n\\x1b[2J thing')", r'bad\n\x1b[2J thing'),
  ],
)
def test_user_and_system_errors_are_one_line(body, line):
  status, output, errors = run(body)
  assert (status, output) == (2, '') and len(errors.splitlines()) == 1
  assert errors.startswith(f'error: {line}'), errors


def test_a_bug_has_a_traceback_and_so_has_any_error_if_asked():
  status, _, errors = run("raise KeyError('a bug')")
  assert status == 1 and 'Traceback' in errors and errors.endswith("KeyError: 'a bug'\n")
  status, _, errors = run("open('/nowhere/at/all')", DITSAM_TRACEBACK='1')
  assert (
    status == 2 and 'Traceback' in errors and errors.endswith('error: /nowhere/at/all: No such file or directory\n')
  )


def test_a_value_that_starts_with_a_dash_must_be_joined(capsys):
  """argparse takes `--box -5,0,90,80` for two options."""
  parser = options.Parser()
  parser.add_argument('--box')
  with pytest.raises(SystemExit, match='2'):
    parser.parse_args(['--box', '-5,0,90,80'])
  assert '--box: expected one argument (join a value that starts with a dash: --option=' in capsys.readouterr().err
  assert parser.parse_args(['--box=-5,0,90,80']).box == '-5,0,90,80'


@pytest.mark.parametrize(
  'words, message',
  [
    (
      ['--chekpoint=shapes'],
      "error: unknown option '--chekpoint': did you mean '--checkpoint'? --help lists the options",
    ),
    (
      ['--checkpoint=a', '--lmit', '3'],
      "error: unknown option '--lmit': did you mean '--limit'? --help lists the options",
    ),
    (['--checkpoint=a', '--zzz'], 'error: unrecognized arguments: --zzz; --help lists the options'),
    (['--limit=3'], 'error: the following arguments are required: --checkpoint; --help lists the options'),
  ],
)
def test_a_similar_option_is_suggested_also_for_a_required_one(words, message, capsys):
  parser = options.Parser()
  parser.add_argument('--checkpoint', required=True)
  parser.add_argument('--limit', type=int)
  with pytest.raises(SystemExit, match='2'):
    parser.parse_args(words)
  assert capsys.readouterr().err == f'{message}\n'


NOISE = "warnings.warn('old'); logging.getLogger('absl').error('damaged entry')\nprint('result')"


def test_libraries_are_quiet_unless_asked():
  assert run(NOISE) == (0, 'result\n', '')
  status, output, errors = run(NOISE, DITSAM_TRACEBACK='1')
  assert (status, output) == (0, 'result\n') and 'old' in errors and 'damaged entry' in errors


def test_text_the_terminal_cannot_encode_is_escaped():
  assert run("print('\u732b')", PYTHONIOENCODING='ascii') == (0, '\\u732b\n', '')


def test_a_closed_pipe_ends_the_command_silently():
  process = subprocess.Popen(
    [
      sys.executable,
      '-c',
      'from ditsam_jax import command_line\ncommand_line.run(lambda: [print(i) for i in range(9**6)])',
    ],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )
  process.stdout.readline()
  process.stdout.close()
  assert process.wait(timeout=60) == 141 and process.stderr.read() == b''


def test_all_commands_under_one_name():
  def status(*arguments):
    done = subprocess.run([sys.executable, '-m', 'ditsam_jax', *arguments], cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr

  for arguments in ([], ['--help'], ['-h']):
    code, output, errors = status(*arguments)
    assert (code, errors) == (0, '') and all(f'  {name} ' in output for name in __main__.COMMANDS)
  code, output, errors = status('predcit', '--image=x.png')
  assert (code, output) == (2, '') and errors.startswith(
    "error: command 'predcit' is unknown; expected one of predict,"
  )
  assert len(errors.splitlines()) == 1


def test_a_closed_pipe_ends_the_list_of_commands_silently():
  reading, writing = os.pipe()
  os.close(reading)
  with open(writing, 'w') as pipe:
    done = subprocess.run(
      [sys.executable, '-m', 'ditsam_jax'], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False
    )
  assert done.returncode == 141 and done.stderr == b''


@pytest.mark.multiprocess
@pytest.mark.parametrize(
  'command, arguments', [('predict', ['--image=docs/scene.png', '--text=red']), ('evaluate', [])]
)
def test_a_missing_model_is_one_line_with_status_2(tmp_path, command, arguments):
  done = subprocess.run(
    [
      *(sys.executable, '-m', f'ditsam_jax.{command}', *arguments),
      *(f'--checkpoint={tmp_path / "no_model"}', f'--output={tmp_path / "out"}'),
    ],
    cwd=ROOT,
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 2 and done.stdout == ''
  (line,) = done.stderr.splitlines()
  assert line.startswith('error: ') and 'no_model' in line
