"""The serve command: options, start and shutdown."""

import contextlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ditsam_jax import serve
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_PIXELS
from ditsam_jax.serving import server
from ditsam_jax.serving.limits import Limits
from tests.fuzz.seeds import picture, save_sam
from tests.serving.running import Client, png, raw

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  return save_sam(tmp_path_factory.mktemp('model') / 'sam')


@pytest.fixture
def started(monkeypatch):
  """Returns what the command would have served."""
  found = {}

  def run(service, listening, hosts, url):
    listening.close()
    service.close()
    found.update(service=service, hosts=hosts, url=url, limits=service.limits)
    return 0

  monkeypatch.setattr(server, 'run', run)
  return found


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--checkpoint=nowhere'], "'nowhere' does not exist"),
    (['--port=70000'], '--port=70000'),
    (['--batch-size=0'], '--batch-size=0'),
    (['--points-per-side=0'], 'points_per_side 0: expected'),
    (['--host=no.such.host.invalid'], '--host or --port'),
    (['--allow-host='], "--allow-host='': expected a host's name"),
    (['--allow-host=https://masks.example.com/'], 'without scheme, port or path'),
    (['--allow-host=10.0.0.1:8000'], 'without scheme, port or path'),
    (['--token=short'], 'at least 16 characters'),
    (['--token=with spaces in it, that is'], 'without spaces'),
    (['--token=0123456789abcdef', '--token-file=x'], 'expected one of them'),
    (['--token-file=nowhere'], 'nowhere: no such file'),
    (['--max-megapixels=90'], '--max-megapixels=90'),
    (['--max-upload-mib=nan'], '--max-upload-mib=nan'),
    (['--keep-mib=2', '--max-megapixels=1'], '--keep-mib=2: an image of 1 megapixels takes'),
    (['--max-queue=0'], '--max-queue=0'),
    (['--max-points=1001'], '--max-points=1001'),
    (['--timeout=0'], '--timeout=0'),
    (['--everything-timeout=0'], '--everything-timeout=0'),
    (['--batch-wait-ms=-1'], '--batch-wait-ms=-1'),
  ],
)
def test_bad_options_are_refused_in_one_line_before_any_work(arguments, message, started):
  with pytest.raises(UserError, match=re.escape(message)):
    serve.main(['--port=0', *arguments])
  assert not started


def test_a_port_in_use_is_refused(started):
  with socket.create_server(('127.0.0.1', 0)) as taken, pytest.raises(UserError, match='Address already in use'):
    serve.main([f'--port={taken.getsockname()[1]}'])


@pytest.mark.slow
def test_by_default_only_this_machine_can_connect(model, started, capsys, tmp_path):
  assert serve.main([f'--checkpoint={model}', '--port=0']) == 0
  assert started['url'].startswith('http://127.0.0.1:') and set(started['hosts']) == {'localhost', '127.0.0.1', '::1'}
  assert capsys.readouterr().err == ''
  token = tmp_path / 'token'
  token.write_text('0123456789abcdef\n')
  for more, message in (([], 'anyone, without a token'), ([f'--token-file={token}'], 'anyone with the token')):
    serve.main([f'--checkpoint={model}', '--port=0', '--host=0.0.0.0', *more])
    assert message in capsys.readouterr().err and started['hosts'] is None
  serve.main([f'--checkpoint={model}', '--port=0', '--allow-host=Masks.example.com'])
  assert 'masks.example.com' in started['hosts']


def test_limits_without_options_are_the_default_ones(model, started):
  serve.main([f'--checkpoint={model}', '--port=0'])
  assert started['limits'] == Limits()


def test_the_largest_image_is_the_largest_that_can_be_read(model, started):
  serve.main([f'--checkpoint={model}', '--port=0', f'--max-megapixels={MAX_PIXELS / 1e6}'])
  assert started['limits'].pixels == MAX_PIXELS
  with pytest.raises(UserError, match='--max-megapixels'):
    serve.main([f'--checkpoint={model}', '--port=0', f'--max-megapixels={(MAX_PIXELS + 1) / 1e6}'])


def test_options_set_limits(model, started):
  serve.main(
    [
      f'--checkpoint={model}',
      '--port=0',
      '--max-megapixels=1',
      '--max-upload-mib=0.5',
      '--keep-mib=64',
      '--max-queue=7',
      '--everything-timeout=600',
    ]
  )
  limits = started['limits']
  assert (limits.pixels, limits.upload_bytes, limits.kept_bytes) == (10**6, 2**19, 2**26)
  assert (limits.seconds, limits.everything_seconds) == (Limits().seconds, 600)
  assert (limits.queue, limits.per_client, limits.prompts) == (7, 7, 7)


def test_the_documentation_names_every_option(capsys):
  with pytest.raises(SystemExit):
    serve.main(['--help'])
  page = (ROOT / 'docs/serving.md').read_text()
  options = set(re.findall(r'^  (--[a-z-]+)', capsys.readouterr().out, re.MULTILINE)) - {'--help'}
  assert len(options) > 10 and not [option for option in options if f'`{option}' not in page]


@contextlib.contextmanager
def process(model):
  options = (f'--checkpoint={model}', '--port=0', '--batch-size=1', '--max-points=1')  # few programs
  command = [sys.executable, '-m', 'ditsam_jax.serve', *options]
  running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
  try:
    line = running.stderr.readline()
    yield running, int(re.search(r'127\.0\.0\.1:(\d+)/', line)[1])
  finally:
    running.kill()
    running.wait()


@pytest.mark.multiprocess
def test_a_signal_stops_the_service_after_current_requests(model):
  with process(model) as (running, port):
    assert running.stderr.readline().startswith('ready: ')
    client = Client(port)
    image = client.upload(picture())
    body = b'{"points": [[3, 4]]}'
    head = (
      f'POST {image}/prompts HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\n'
      f'Content-Length: {len(body)}\r\n\r\n'
    )
    with socket.create_connection(('127.0.0.1', port)) as connection, socket.create_connection(('127.0.0.1', port)):
      connection.sendall(head.encode() + body[:5])
      time.sleep(0.3)
      began = time.monotonic()
      running.send_signal(signal.SIGTERM)
      assert running.stderr.readline() == 'stopping after current requests\n'
      time.sleep(0.5)
      with pytest.raises(ConnectionError):
        raw(port, b'GET /healthz HTTP/1.1\r\n\r\n')
      connection.sendall(body[5:])
      assert connection.recv(100).startswith(b'HTTP/1.1 200')
    assert running.wait(20) == 0 and time.monotonic() - began < 10
    assert running.stderr.read() == ''


@pytest.mark.multiprocess
def test_a_signal_stops_the_service_while_compiling_and_despite_slow_clients(model):
  for wait_for_ready, number in ((False, signal.SIGTERM), (True, signal.SIGINT)):
    with process(model) as (running, port):
      if wait_for_ready:
        assert running.stderr.readline().startswith('ready: ')
      data = png(picture())
      with socket.create_connection(('127.0.0.1', port)) as connection:
        connection.sendall(
          b'POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n' % len(data) + data[:9]
        )
        assert b'HTTP/1.1 200' in raw(port, b'GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n')
        began = time.monotonic()
        running.send_signal(number)
        assert running.wait(30) == 0 and time.monotonic() - began < 10.5
      assert 'Traceback' not in running.stderr.read()


@pytest.mark.parametrize(
  'error, status, line',
  [(UserError('no more files'), 2, 'error: no more files'), (RuntimeError('a bug'), 1, 'RuntimeError: a bug')],
)
def test_a_failure_while_programs_compile_is_printed(monkeypatch, capsys, error, status, line):
  stopped, ended = threading.Event(), []
  service = SimpleNamespace(state=SimpleNamespace(stopping=False), close=lambda: None)

  def fail(sockets):
    raise error

  def end(code):
    ended.append(code)
    stopped.set()

  monkeypatch.setattr(server, 'http_server', lambda *_: SimpleNamespace(run=fail, should_exit=False))
  monkeypatch.setattr(server, '_compile', lambda *_: stopped.wait(60))
  monkeypatch.setattr(server.interruption, 'end_process', end)
  with pytest.raises(type(error)):  # only because the process did not end
    server.run(service, None, None, '')
  assert ended == [status] and line in capsys.readouterr().err
