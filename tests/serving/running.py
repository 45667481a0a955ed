"""A service in a thread of the test, and a minimal client."""

import contextlib
import http.client
import io
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving import server
from ditsam_jax.serving.app import Service
from ditsam_jax.serving.guard import LOOPBACK
from ditsam_jax.serving.limits import Limits


class Answer(NamedTuple):
  """An HTTP answer."""

  status: int
  headers: http.client.HTTPMessage
  body: bytes

  @property
  def json(self) -> Any:
    return json.loads(self.body)


class Client:
  """A session with its cookie and connection."""

  def __init__(self, port: int, token: str | None = None):
    self.port = port
    self.cookie = ''
    self.token = token
    self._connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)

  def request(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Answer:
    headers = dict(headers or {})
    if isinstance(body, dict | list):
      body = json.dumps(body)
      headers.setdefault('Content-Type', 'application/json')
    if self.cookie:
      headers.setdefault('Cookie', self.cookie)
    if self.token:
      headers.setdefault('Authorization', f'Bearer {self.token}')
    try:
      self._connection.request(method, path, body, headers)
      response = self._connection.getresponse()
    except (BrokenPipeError, ConnectionResetError, http.client.RemoteDisconnected):  # idle for too long
      self._connection.close()
      self._connection.request(method, path, body, headers)
      response = self._connection.getresponse()
    answer = Answer(response.status, response.headers, response.read())
    if cookie := answer.headers.get('Set-Cookie'):
      self.cookie = cookie.partition(';')[0]
    return answer

  def get(self, path: str, **headers: str) -> Answer:
    return self.request('GET', path, headers=headers)

  def post(self, path: str, body: Any, **headers: str) -> Answer:
    return self.request('POST', path, body, {name.replace('_', '-'): value for name, value in headers.items()})

  def upload(self, image: np.ndarray | bytes) -> str:
    """Uploads an image; returns its path."""
    answer = self.post('/api/images', image if isinstance(image, bytes) else png(image))
    assert answer.status == 201, answer
    return f'/api/images/{answer.json["id"]}'

  def close(self) -> None:
    self._connection.close()


class Held(Segmenter):
  """A segmenter that waits for `go` before each batch, and records batches."""

  def __init__(self, segmenter: Segmenter):
    self.__dict__.update(segmenter.__dict__)
    self.go, self.fails = threading.Event(), False
    self.batches: list[tuple[list, int]] = []

  def begin(self, batch: list, at_once: int) -> list:
    assert self.go.wait(60)
    self.batches.append(([prompt.text or len(prompt.points) for _, prompt in batch], at_once))
    if self.fails:
      raise RuntimeError('the device is gone')
    return super().begin(batch, at_once)


class Running(NamedTuple):
  """A running service and its port."""

  service: Service
  port: int
  http: Any

  def client(self, token: str | None = None) -> Client:
    return Client(self.port, token)


@contextlib.contextmanager
def running(
  segmenter: Segmenter, limits: Limits = Limits(), *, token: str | None = None, hosts: tuple[str, ...] | None = LOOPBACK
) -> Iterator[Running]:
  """Runs a service that is ready at once; programs are compiled on first use, for a prompt and for a batch."""
  listening = server.listen('127.0.0.1', 0)
  service = Service(segmenter, 'small', limits, token=token)
  service.state.ready = True
  web = server.http_server(service, hosts)
  thread = threading.Thread(target=web.run, kwargs={'sockets': [listening]}, daemon=True)
  thread.start()
  while not web.started:
    time.sleep(0.005)
  try:
    yield Running(service, listening.getsockname()[1], web)
  finally:
    web.should_exit = True
    thread.join(20)
    assert not thread.is_alive()
    service.close()


def png(image: np.ndarray, kind: str = 'PNG', **options: Any) -> bytes:
  """Encodes pixels as an image file."""
  stream = io.BytesIO()
  Image.fromarray(image).save(stream, kind, **options)
  return stream.getvalue()


def form(**parts: bytes | str) -> tuple[bytes, str]:
  """Returns a form's body and content type; bytes are files."""
  body = b''
  for name, value in parts.items():
    file = '; filename="a.png"' if isinstance(value, bytes) else ''
    data = value if isinstance(value, bytes) else value.encode()
    body += f'--xyz\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + data + b'\r\n'
  return body + b'--xyz--\r\n', 'multipart/form-data; boundary=xyz'


def raw(port: int, data: bytes, *, half_close: bool = False) -> bytes:
  """Sends bytes; returns everything received until the other side closes the connection."""
  with socket.create_connection(('127.0.0.1', port), timeout=20) as connection:
    connection.sendall(data)
    if half_close:
      connection.shutdown(socket.SHUT_WR)
    found = b''
    with contextlib.suppress(ConnectionError):
      while more := connection.recv(65536):
        found += more
    return found
