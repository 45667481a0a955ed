"""Clients that misbehave get a clean answer in time and do not affect others."""

import contextlib
import gc
import json
import random
import resource
import socket
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.inference.framing import frame
from ditsam_jax.serving.everything import Everything
from ditsam_jax.serving.limits import Limits
from tests.fuzz import images as fuzz_images
from tests.fuzz import mutations
from tests.fuzz.seeds import picture
from tests.serving.running import Held, form, png, raw, running

STRICT = Limits(
  upload_bytes=200_000,
  pixels=20_000,
  request_bytes=50_000,
  kept_bytes=3 * 2**20,
  queue=4,
  per_client=3,
  uploads=3,
  seconds=20,
  upload_seconds=0.5,
  header_seconds=1,
  connections=400,
)
PROMPT = {'points': [[3, 4]]}
HEAD = b'POST /api/images HTTP/1.1\r\nHost: localhost\r\n'


def resident():
  """Returns the resident memory of this process in bytes."""
  return int(Path('/proc/self/statm').read_text().split()[1]) * resource.getpagesize()


@pytest.fixture(scope='module')
def strict(segmenter):
  with running(segmenter, STRICT) as found:
    client = found.client()
    found.service.segmenter(picture(), points=[[3, 4]])  # compiles
    client.close()
    yield found


@pytest.fixture(autouse=True)
def still_there(strict):
  yield
  client = strict.client()
  assert client.post(f'{client.upload(picture())}/prompts', PROMPT).status == 200
  client.close()


def test_large_requests_are_refused_before_they_are_read(strict):
  client = strict.client()
  big = png(np.zeros((201, 100, 3), np.uint8))
  answer = client.post('/api/images', big)
  assert answer.status == 400 and 'more than 20,000 pixels' in answer.json['error']
  for length in (200_001, 10**12):
    head = raw(strict.port, HEAD + b'Content-Length: %d\r\nConnection: close\r\n\r\n' % length)
    assert head.startswith(b'HTTP/1.1 413')
  chunks = b''.join(b'8000\r\n' + bytes(2**15) + b'\r\n' for _ in range(8))  # no declared length
  assert raw(strict.port, HEAD + b'Transfer-Encoding: chunked\r\n\r\n' + chunks).startswith(b'HTTP/1.1 413')
  image = client.upload(picture())
  assert client.post(f'{image}/prompts', '"' + 'x' * 50_001 + '"').status == 413
  body, kind = form(image=bytes(200_001), prompt='{}')
  assert client.post('/api/segment', body, Content_Type=kind).status == 413
  body, kind = form(image=bytes(300_000), prompt='{}')
  assert client.post('/api/segment', body, Content_Type=kind).status == 413


def test_a_decompression_bomb_is_refused_by_its_header(strict):
  """A small file with a huge number of pixels."""
  import zlib

  def chunk(name, data):
    return len(data).to_bytes(4, 'big') + name + data + zlib.crc32(name + data).to_bytes(4, 'big')

  size = (30_000).to_bytes(4, 'big') * 2 + bytes([8, 2, 0, 0, 0])
  bomb = b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', size) + chunk(b'IDAT', zlib.compress(bytes(10**6))) + chunk(b'IEND', b'')
  before = resident()
  answer = strict.client().post('/api/images', bomb)
  assert answer.status == 400 and 'pixels' in answer.json['error']
  assert resident() - before < 50 * 2**20


@pytest.mark.slow
def test_slow_bodies_and_heads_time_out(strict):
  began = time.monotonic()
  slow = raw(strict.port, HEAD + b'Content-Length: 1000\r\n\r\nabc')
  assert slow.startswith(b'HTTP/1.1 408') and b'0.5 seconds' in slow
  for data in (b'', HEAD, b'GET / HTTP/1.1\r\nHost: localhost\r\n\r\nGET /'):  # closed without an answer to the last
    raw(strict.port, data)
  assert time.monotonic() - began < 15
  with socket.create_connection(('127.0.0.1', strict.port)) as connection, contextlib.suppress(OSError):
    began = time.monotonic()
    while time.monotonic() - began < 10:  # a byte at a time
      connection.sendall(b'x')
      time.sleep(0.1)
  assert time.monotonic() - began < 8


def test_a_client_that_does_not_read_its_answer_is_disconnected(strict):
  with socket.socket() as connection:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(('127.0.0.1', strict.port))
    asked = b'GET /main.js HTTP/1.1\r\nHost: localhost\r\n\r\n'
    with contextlib.suppress(OSError):
      connection.sendall(asked * 4000)
    deadline = time.monotonic() + 20
    while any(
      each.flow.write_paused or each.transport.is_closing() for each in list(strict.http.server_state.connections)
    ):
      assert time.monotonic() < deadline
      time.sleep(0.05)


def test_half_closed_and_reset_connections(strict):
  data = png(picture())
  whole = HEAD + b'Content-Length: %d\r\nConnection: close\r\n\r\n' % len(data) + data
  for end in (len(whole), len(whole) // 2, 20):
    found = raw(strict.port, whole[:end], half_close=True)
    assert not found or found.startswith((b'HTTP/1.1 201', b'HTTP/1.1 4'))
    with socket.create_connection(('127.0.0.1', strict.port)) as connection:
      connection.sendall(whole[:end])
      connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b'\1\0\0\0\0\0\0\0')  # a reset


@pytest.mark.parametrize(
  'data',
  [
    b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'x' * 100_000,
    b'GET / HTTP/1.1\r\nHost: localhost\r\n' + b'X: y\r\n' * 20_000,
    b'GET /' + b'a' * 100_000 + b' HTTP/1.1\r\n\r\n',
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + bytes(50),
    b'GET http://169.254.169.254/ HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n',
    b'POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n',
    b'POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef',
    b'CONNECT localhost:22 HTTP/1.1\r\nHost: localhost\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nCookie: ' + b'a=b;' * 3000 + b'\r\nConnection: close\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n',
    bytes(random.Random(0).randbytes(5000)),
  ],
  ids=['header', 'headers', 'target', 'TLS', 'proxy', 'length', 'lengths', 'CONNECT', 'cookies', 'websocket', 'noise'],
)
def test_malformed_heads_are_refused(strict, data):
  found = raw(strict.port, data)
  assert found == b'' or found.startswith((b'HTTP/1.1 4', b'HTTP/1.1 200')), found[:100]


def test_a_thousand_sockets(strict):
  sockets = []
  try:
    for number in range(1000):
      sockets.append(socket.create_connection(('127.0.0.1', strict.port), timeout=10))
      if number % 3 == 0:
        with contextlib.suppress(OSError):
          sockets[-1].sendall(HEAD)
    deadline = time.monotonic() + 10
    while len(strict.http.server_state.connections) > STRICT.connections:
      assert time.monotonic() < deadline
      time.sleep(0.01)
    while len(strict.http.server_state.connections) > 5:  # idle connections are closed
      assert time.monotonic() < deadline
      time.sleep(0.05)
  finally:
    for each in sockets:
      each.close()


def test_pages_of_other_sites_are_refused(strict):
  client = strict.client()
  image = client.upload(picture())
  here = f'http://localhost:{strict.port}'
  for headers in (
    {'Origin': 'https://example.com'}, {'Origin': 'null'}, {'Sec-Fetch-Site': 'cross-site'},
    {'Sec-Fetch-Site': 'same-site'}, {'Host': 'rebound.example.com'}, {'Host': ''}, {'Host': 'localhost.example.com'},
    {'Origin': here, 'Host': 'localhost:1'},
  ):  # fmt: skip
    assert client.request('POST', f'{image}/prompts', PROMPT, headers).status in (400, 403), headers
    client = strict.client() if headers.get('Host') == '' else client
  same = {'Host': f'localhost:{strict.port}', 'Origin': here, 'Sec-Fetch-Site': 'same-origin'}
  owner = strict.client()
  assert owner.request('POST', f'{owner.upload(picture())}/prompts', PROMPT, same).status == 200


def test_overload_is_refused_and_leaves_the_service_working(strict):
  """Sends eight times the queue's capacity; each request is answered with 200, 404, 429 or 503."""
  clients = [strict.client() for _ in range(32)]
  images = [client.upload(picture()) for client in clients]
  statuses, lock = [], threading.Lock()

  def ask(client, image):
    for _ in range(3):
      answer = client.post(f'{image}/prompts', PROMPT)
      with lock:
        statuses.append(answer.status)
      if answer.status != 200:
        assert int(answer.headers['Retry-After']) >= 1

  threads = [threading.Thread(target=ask, args=pair) for pair in zip(clients, images)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  # Images may have been evicted: 404 tells the client to upload again.
  assert len(statuses) == 96 and set(statuses) <= {200, 404, 429, 503} and 200 in statuses
  assert len(strict.service.batcher) == 0 and not strict.service.batcher._clients


def test_images_never_exceed_the_memory_limit(strict):
  client = strict.client()
  store = strict.service.store
  for _ in range(60):
    client.upload(picture(100, 150))
    assert store.bytes <= STRICT.kept_bytes
  assert store.evicted > 0 and sum(image.bytes for image in store._images.values()) == store.bytes


def test_the_memory_of_a_removed_image_is_freed(strict):
  client = strict.client()
  for prompts in ([], [PROMPT]):
    image = client.upload(picture())
    kept = weakref.ref(strict.service.store._images[image.rpartition('/')[2]].framed)
    for prompt in prompts:
      assert client.post(f'{image}/prompts', prompt).status == 200
    assert client.request('DELETE', image).status == 204
    deadline = time.monotonic() + 5
    while kept() is not None and time.monotonic() < deadline:  # until it has been encoded, for the first
      time.sleep(0.05)
      gc.collect()
    assert kept() is None


@pytest.mark.parametrize('path', ['prompts', 'everything'])
def test_an_image_is_not_kept_for_a_body_that_has_not_arrived(strict, path):
  client, body = strict.client(), json.dumps({'text': 'the red circle'}).encode()
  image = client.upload(picture())
  with socket.create_connection(('127.0.0.1', strict.port)) as connection:
    head = (
      f'POST {image}/{path} HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\n'
      f'Content-Length: {len(body)}\r\n\r\n'
    )
    connection.sendall(head.encode() + body[:5])
    time.sleep(0.1)  # until the head has been read
    assert client.request('DELETE', image).status == 204
    connection.sendall(body[5:])
    assert connection.recv(1000).startswith(b'HTTP/1.1 404')


def test_the_prompt_of_a_disconnected_client_is_dropped(segmenter):
  held = Held(segmenter)
  with running(held) as service:
    client, batcher = service.client(), service.service.batcher
    image = client.upload(picture())
    body = json.dumps(PROMPT).encode()
    head = (
      f'POST {image}/prompts HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\n'
      f'Content-Length: {len(body)}\r\n\r\n'
    )
    deadline = time.monotonic() + 10

    def until(waiting):
      while sum(batcher._clients.values()) != waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)

    with contextlib.ExitStack() as opened:
      first, second = (opened.enter_context(socket.create_connection(('127.0.0.1', service.port))) for _ in range(2))
      first.sendall(head.encode() + body)
      until(1)
      time.sleep(0.05)  # the device has it
      second.sendall(head.encode() + body)
      until(2)
      second.close()
      until(1)
      held.go.set()
      assert first.recv(100).startswith(b'HTTP/1.1 200')
    assert held.batches == [([1], 1)]


def timed_out(service, answer, go):
  """Checks that retrying is not suggested, and that the image is held while it is still computed, until `go` is set."""
  assert answer.status == 504 and '0.2 seconds' in answer.json['error'] and 'Retry-After' not in answer.headers
  (kept,) = service.service.store._images.values()
  time.sleep(0.1)
  assert kept.held
  go.set()
  deadline = time.monotonic() + 10
  while kept.held:
    assert time.monotonic() < deadline
    time.sleep(0.01)


def test_an_answer_that_takes_too_long(segmenter):
  held = Held(segmenter)
  with running(held, Limits(seconds=0.2)) as service:
    client = service.client()
    image = client.upload(picture())
    answer = client.post(f'{image}/prompts', [PROMPT, PROMPT])
    timed_out(service, answer, held.go)


def test_images_waiting_for_everything_and_their_time_are_limited(segmenter):
  with running(segmenter, Limits(everything=1, everything_seconds=0.2)) as service:
    go = threading.Event()
    service.service.everything._masks = lambda *_: go.wait(60)
    client = service.client()
    image = client.upload(picture())
    late = client.post(f'{image}/everything', {})
    answer = client.post(f'{image}/everything', {})
    assert answer.status == 503 and '1 images' in answer.json['error']
    timed_out(service, late, go)


def test_everything_stops_when_nobody_waits_for_it(segmenter):
  stopped = threading.Event()

  def until_unwanted(generator, framed, text, wanted):
    while wanted():
      time.sleep(0.01)
    stopped.set()

  with running(segmenter, Limits(everything_seconds=0.2)) as service:
    service.service.everything._masks = until_unwanted
    client = service.client()
    assert client.post(f'{client.upload(picture())}/everything', {}).status == 504
    assert stopped.wait(10)


def test_an_image_that_no_longer_waits_for_everything_is_freed(segmenter):
  everything, go = Everything(segmenter, Limits()), threading.Event()
  everything._masks = lambda *_: go.wait(60)
  first, second = (frame(picture(), segmenter.config) for _ in range(2))
  everything.submit(first, None)
  kept = weakref.ref(second)
  assert everything.submit(second, None).cancel()
  del second
  gc.collect()
  assert kept() is None
  go.set()
  everything.close()


def test_a_token_is_required(segmenter):
  token = 'a-token-of-24-characters'
  with running(segmenter, token=token, hosts=None) as service:
    for wrong in (None, 'another-token-of-this-length', ''):
      client = service.client(wrong)
      for method, path in (
        ('POST', '/api/images'),
        ('GET', '/api/model'),
        ('GET', '/metrics'),
        ('POST', '/api/images/x/prompts'),
      ):
        answer = client.request(method, path)
        assert answer.status == 401 and answer.headers['WWW-Authenticate'] == 'Bearer'
      assert client.get('/').status == client.get('/healthz').status == 200
    client = service.client(token)
    assert client.post(f'{client.upload(picture())}/prompts', PROMPT).status == 200
    assert client.get('/api/model').status == 200


def test_damaged_images_are_read_or_refused_in_one_line(strict, tmp_path):
  """Uses the fuzz suite's files of every format."""
  fuzz_images.prepare(tmp_path)
  files = sorted(tmp_path.iterdir())
  client, statuses = strict.client(), []
  for number in range(150):
    chance = random.Random(f'serve/{number}')
    data = chance.choice(files).read_bytes()
    for _ in range(chance.choice([0, 1, 1, 3])):
      data, _ = mutations.damaged(data, chance, chance.choice(files).read_bytes())
    answer = client.post('/api/images', data)
    statuses.append(answer.status)
    assert answer.status in (201, 400), (number, answer)
    assert answer.status == 201 or answer.json['error'].isprintable()
  assert statuses.count(201) > 20 and statuses.count(400) > 20


@pytest.mark.slow
def test_damaged_prompts_are_answered_or_refused_in_one_line(strict):
  """Uses the fuzz suite's changed values, damaged bytes and invalid JSON."""
  client = strict.client()
  image = client.upload(picture())
  good = {
    'text': 'the red circle',
    'points': [[3, 4], [5, 6]],
    'labels': [1, 0],
    'box': [1, 2, 30, 20],
    'mask': None,
    'multimask': False,
  }
  statuses = []
  for number in range(250):
    data, what = mutations.damaged_json(
      random.Random(f'serve/{number}').choice([good, [good, good]]), random.Random(number)
    )
    answer = client.post(f'{image}/prompts', data)
    statuses.append(answer.status)
    assert answer.status in (200, 400, 413), (what, answer)
    if answer.status == 200:
      for found in answer.json if isinstance(answer.json, list) else [answer.json]:
        assert all(np.isfinite(mask['score']) for mask in found['masks'])
    else:
      assert answer.json['error'].isprintable() and len(answer.json['error']) <= 2100
  assert statuses.count(200) > 5 and statuses.count(400) > 100
