"""Ctrl-C and SIGTERM end every command with one line, whatever it is doing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENDS = {signal.SIGINT: (130, 'interrupted'), signal.SIGTERM: (143, 'terminated (SIGTERM)')}
COMMANDS = {
  'train': ['-m', 'ditsam_jax.train', '--config=configs/ldit.py:shapes'],
  'evaluate': ['-m', 'ditsam_jax.evaluate', '--checkpoint=shapes'],
  'predict': ['-m', 'ditsam_jax.predict', '--image=docs/scene.png', '--text=the red circle'],
  'prepare': ['-m', 'ditsam_jax.prepare', '--dataset=refcoco', '--annotations=nowhere', '--images=nowhere'],
  'serve': ['-m', 'ditsam_jax.serve', '--checkpoint=shapes', '--port=0'],
  'export': ['-m', 'ditsam_jax.export', '--checkpoint=shapes', '--output=/dev/null/export'],
  'compile_report': ['-m', 'ditsam_jax.compile_report', '--config=configs/ldit.py', '--topology=v5e:2x2'],
  'torch_to_flax': ['convert/torch_to_flax.py', '--input=nowhere', '--output=nowhere'],
  'flax_to_torch': ['convert/flax_to_torch.py', '--input=nowhere', '--output=nowhere'],
}

pytestmark = pytest.mark.skipif(not Path('/proc/self/status').exists(), reason='asks Linux which signals are caught')


def start(*arguments, **more):
  return subprocess.Popen(
    [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
  )


def catches(process, number):
  status = Path(f'/proc/{process.pid}/status').read_text()
  (caught,) = [line.split()[1] for line in status.splitlines() if line.startswith('SigCgt')]
  return int(caught, 16) >> (number - 1) & 1


def end(process, number, after):
  """Signals a process `after` seconds after it installed its handlers; returns its status and lines of errors."""
  deadline = time.monotonic() + 60
  while not catches(process, signal.SIGTERM):  # until then Python is starting, and none of our code runs
    assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
  time.sleep(after)
  process.send_signal(number)
  try:
    _, errors = process.communicate(timeout=60)
  finally:
    process.kill()
  assert 'Traceback' not in errors and 'Error' not in errors, errors
  return process.returncode, errors.splitlines()


@pytest.mark.multiprocess
@pytest.mark.parametrize('name', COMMANDS)
def test_every_command_can_be_stopped_during_imports(name):
  chance = random.Random(name)
  for number in ENDS:
    status, line = ENDS[number]
    assert end(start(*COMMANDS[name]), number, chance.uniform(0, 0.3)) == (status, [line])


@pytest.mark.multiprocess
@pytest.mark.parametrize('number', ENDS)
def test_a_command_can_be_stopped_while_it_compiles_and_runs(number, tmp_path):
  chance = random.Random(int(number))
  environment = {**os.environ, 'JAX_ENABLE_COMPILATION_CACHE': 'false'}
  prompts, output = tmp_path / 'prompts.jsonl', tmp_path / 'output'
  asked = ({'image': str(ROOT / 'docs' / 'scene.png'), 'points': [divmod(number, 100)]} for number in range(10_000))
  prompts.write_text('\n'.join(map(json.dumps, asked)))  # more than any machine can do in the time
  for turn in range(2):
    process = start(
      '-m', 'ditsam_jax.predict', f'--prompts={prompts}', f'--output={output / str(turn)}', env=environment
    )
    assert end(process, number, chance.uniform(1, 4)) == (ENDS[number][0], [ENDS[number][1]])
  assert not [path for path in output.rglob('*') if path.name.startswith('.')]


def test_worker_processes_ignore_ctrl_c(tmp_path):
  package = tmp_path / 'ditsam_jax'  # a minimal copy of the package, with a command for this test
  package.mkdir()
  for name in ('__init__.py', 'command_line.py', 'interruption.py', 'errors.py', 'terminal.py'):
    shutil.copy(ROOT / 'ditsam_jax' / name, package)
  (package / 'work.py').write_text("""
import multiprocessing, os, signal, sys
from ditsam_jax import command_line

def worker(pipe):
  os.killpg(0, signal.SIGINT)
  pipe.send('still here')

def main():
  here, there = multiprocessing.Pipe()
  process = multiprocessing.get_context('spawn').Process(target=worker, args=(there,))
  process.start()
  try:
    process.join(30)
  except KeyboardInterrupt:
    print(here.recv() if here.poll(10) else 'gone', flush=True)
    raise

if __name__ == '__main__':
  command_line.run(main)
""")
  process = subprocess.Popen(
    [sys.executable, '-m', 'ditsam_jax.work'],
    cwd=tmp_path,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  assert process.communicate(timeout=60) == ('still here\n', 'interrupted\n') and process.returncode == 130


WORK = """
import ctypes, gc, hashlib, os, signal, sys, time
from ditsam_jax import command_line, interruption
interruption._GRACE = 3.0

class Lost:
  def __del__(self):
    os.kill(os.getpid(), signal.{signal})
    for _ in range(1000): pass

def swallowed_by_a_destructor():
  Lost()
  while True: time.sleep(0.01)

def swallowed_by_the_garbage_collector():
  sent = []
  def callback(*_):
    if not sent:
      sent.append(1)
      os.kill(os.getpid(), signal.{signal})
      for _ in range(1000): pass
  gc.callbacks.append(callback)
  gc.collect()
  while True: time.sleep(0.01)

def caught_by_a_library():
  while True:
    try:
      os.kill(os.getpid(), signal.{signal})
      time.sleep(60)
    except BaseException:
      pass

def turned_into_another_error():
  try:
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)
  except BaseException as error:
    raise ImportError('numpy is broken') from error

class HalfMade:
  def __init__(self):
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)
    self.socket = 7
  def __del__(self):
    self.socket

def in_a_constructor():
  HalfMade()

def in_c():
  os.kill(os.getpid(), signal.{signal}) if os.fork() else os._exit(0)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 2**31 - 1)

def with_the_wakeup_fd_taken_by_a_library():
  signal.set_wakeup_fd(-1)
  os.kill(os.getpid(), signal.{signal})
  time.sleep(60)

def cleaned_up():
  try:
    os.kill(os.getpid(), signal.{signal})
    time.sleep(60)
  finally:
    print('cleaned up', flush=True)

command_line.run({what})
"""


@pytest.mark.multiprocess
@pytest.mark.parametrize('number', ENDS)
@pytest.mark.parametrize(
  'what, limit',
  [
    ('swallowed_by_a_destructor', 2),
    ('swallowed_by_the_garbage_collector', 2),
    ('caught_by_a_library', 6),
    ('turned_into_another_error', 2),
    ('in_a_constructor', 2),
    ('in_c', 6),
    ('with_the_wakeup_fd_taken_by_a_library', 2),
    ('cleaned_up', 2),
  ],
)
def test_no_signal_is_lost(what, limit, number):
  began = time.monotonic()
  process = start('-c', WORK.replace('{signal}', number.name).replace('{what}', what))
  output, errors = process.communicate(timeout=60)
  assert process.returncode == ENDS[number][0] and errors.splitlines() == [ENDS[number][1]], errors
  assert time.monotonic() - began < limit + 8  # 8 s for Python to start on a busy machine
  assert output == ('cleaned up\n' if what == 'cleaned_up' else '')


def test_a_second_ctrl_c_interrupts_the_cleanup():
  program = """
import time
from ditsam_jax import command_line
def work():
  try:
    print('working', flush=True)
    time.sleep(60)
  finally:
    print('cleaning', flush=True)
    time.sleep(60)
command_line.run(work)
"""
  process = start('-c', program)
  for line in ('working\n', 'cleaning\n'):
    assert process.stdout.readline() == line
    process.send_signal(signal.SIGINT)
  began = time.monotonic()
  _, errors = process.communicate(timeout=60)
  assert (process.returncode, errors) == (130, 'interrupted\n') and time.monotonic() - began < 5


def test_a_signal_that_both_threads_see_counts_once():
  """The main thread returns from C while the other thread, which it kept waiting, is taking the signal over."""
  program = """
import hashlib, os, signal, threading, time
from ditsam_jax import command_line
real = os.read
def read(*arguments):
  data = real(*arguments)
  if threading.current_thread() is not threading.main_thread():
    time.sleep(2)  # between receiving the signal and handling it
  return data
os.read = read
def work():
  started = time.monotonic()
  hashlib.pbkdf2_hmac('sha256', b'', b'', 50_000)
  second = 50_000 / (time.monotonic() - started)  # iterations
  try:
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    hashlib.pbkdf2_hmac('sha256', b'', b'', int(1.2 * second))
  finally:
    time.sleep(2.5)
    print('cleaned up', flush=True)
command_line.run(work)
"""
  output, errors = start('-c', program).communicate(timeout=60)
  assert (output, errors) == ('cleaned up\n', 'interrupted\n')


@pytest.mark.parametrize('number', ENDS)
def test_a_signal_while_python_shuts_down_leaves_the_status(number):
  program = """
import os
from ditsam_jax import command_line
class Late:
  def __del__(self):
    os.kill(os.getpid(), {number})
late = Late()
command_line.run(lambda: 3)
""".replace('{number}', str(int(number)))
  process = start('-c', program)
  assert process.communicate(timeout=60) == ('', '') and process.returncode == 3


def test_a_process_ended_at_once_flushes_its_output_and_kills_its_workers():
  program = """
import multiprocessing, time
from ditsam_jax import interruption
worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))
worker.start()
print('printed', end='')
interruption.end_process(3)
"""
  process = start('-c', program)  # its worker keeps the pipes open as long as it lives
  assert process.communicate(timeout=30) == ('printed', '') and process.returncode == 3


def test_a_signal_to_a_forked_child_does_not_end_the_command():
  program = """
import os, signal, time
from ditsam_jax import command_line
def work():
  child = os.fork()
  if not child:
    time.sleep(60)
  time.sleep(0.2)
  os.kill(child, signal.SIGTERM)
  status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
  time.sleep(1)
  print(status)
command_line.run(work)
"""
  process = start('-c', program)
  assert process.communicate(timeout=60) == ('-15\n', '') and process.returncode == 0


def test_a_signal_ignored_from_the_start_stays_ignored():
  """nohup does that, and shells do for background jobs."""
  program = """
import os, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
from ditsam_jax import command_line
command_line.run(lambda: os.kill(os.getpid(), signal.SIGINT))
"""
  process = start('-c', program)
  assert process.communicate(timeout=60) == ('', '') and process.returncode == 0


def test_importing_the_library_installs_no_handlers():
  program = """
import signal, sys
before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
import ditsam_jax
from ditsam_jax import UserError, command_line, interruption
assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
assert signal.set_wakeup_fd(-1) == -1
"""
  process = start('-c', program)
  assert process.communicate(timeout=60) == ('', '') and process.returncode == 0
