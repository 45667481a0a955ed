"""The service under load, on this machine alone: python benchmarks/serve.py

Starts `python -m ditsam_jax.serve` on a free port of 127.0.0.1 and asks it from here, so the client takes its share of
the cores. Prints one JSON line a case. Seconds are the client's, from the request's first byte to the answer's last.

  users      so many people with a picture each, who think for a while, then click (half of them) or write a sentence
  memory     so many requests as fast as they are answered: the server's memory after every tenth;
             pictures fill the room for them early on
  overload   more requests than it can bear: what is answered, and how quickly it recovers
  batching   requests as fast as they are answered, with batches and one by one

Smaller, to try it: --users=10 --seconds=5 --requests=300
"""

import argparse
import asyncio
import collections
import io
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np
from PIL import Image

CASES = ('users', 'memory', 'overload', 'batching')
THINK = 2.0  # seconds on average
KEPT = 100  # MiB of pictures in the case memory, which fill early
CLIENTS = 16  # where requests follow each other at once
MOST_OPEN = 600  # requests of the overload that wait for their answer
COLOURS, KINDS = (
  ('red', 'green', 'blue', 'yellow', 'purple', 'orange'),
  ('circle', 'square', 'triangle', 'star', 'cross'),
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cases', nargs='+', choices=CASES, default=CASES)
  parser.add_argument('--checkpoint', default='shapes')
  parser.add_argument('--users', type=int, default=100)
  parser.add_argument('--seconds', type=float, default=60, help='of users; overload and batching take a quarter each')
  parser.add_argument('--requests', type=int, default=10_000, help='of memory')
  parser.add_argument('--times', type=float, default=4, help='of what it bears: overload')
  options = parser.parse_args()
  wanted = set(options.cases)
  for case, function, arguments in (
    ('users', users, []),
    ('memory', memory, [f'--keep-mib={KEPT}']),
    ('overload', overload, []),
  ):
    if case in wanted:
      with Server(options.checkpoint, *arguments) as server:
        show(case, asyncio.run(function(server, options)))
  if 'batching' in wanted:
    found = {}
    for size in (8, 1):
      with Server(options.checkpoint, f'--batch-size={size}') as server:
        found[f'per_second_batch_{size}'] = {
          kind: round(asyncio.run(throughput(server, options.seconds / 4, kind)), 1) for kind in ('sentence', 'click')
        }
    show('batching', found)


def show(case: str, figures: dict) -> None:
  print(json.dumps({'case': case, **figures}), flush=True)


class Server:
  """The service as a process, ready."""

  def __init__(self, checkpoint: str, *arguments: str):
    self._command = [sys.executable, '-m', 'ditsam_jax.serve', f'--checkpoint={checkpoint}', '--port=0', *arguments]

  def __enter__(self) -> 'Server':
    began = time.perf_counter()
    self._process = subprocess.Popen(self._command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    self.port = int(re.search(r'127\.0\.0\.1:(\d+)/', self._process.stderr.readline())[1])
    line = self._process.stderr.readline()
    assert line.startswith('ready: '), line
    self.start_seconds = time.perf_counter() - began
    return self

  def __exit__(self, *exception) -> None:
    self._process.terminate()
    self.status = self._process.wait(20)
    assert self.status == 0, self.status

  def megabytes(self) -> float:
    """Memory that the process holds."""
    pages = int(Path(f'/proc/{self._process.pid}/statm').read_text().split()[1])
    return round(pages * os.sysconf('SC_PAGE_SIZE') / 2**20, 1)


class Client:
  """One session, which keeps its connection."""

  def __init__(self, port: int):
    self._port, self._cookie, self._streams = port, '', None

  async def request(self, method: str, path: str, body: bytes = b'') -> tuple[int, bytes]:
    """An answer's status and body; 0 where the connection was lost."""
    kept = self._streams is not None
    try:
      return await self._request(method, path, body)
    except (ConnectionError, asyncio.IncompleteReadError):
      self.close()
      if not kept:  # nothing was lost by an idle connection's end
        return 0, b''
      return await self.request(method, path, body)

  async def _request(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    if self._streams is None:
      self._streams = await asyncio.open_connection('127.0.0.1', self._port, limit=2**22)
    reader, writer = self._streams
    cookie = f'Cookie: {self._cookie}\r\n' if self._cookie else ''
    head = f'{method} {path} HTTP/1.1\r\nHost: localhost\r\n{cookie}Content-Length: {len(body)}\r\n\r\n'
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b'\r\n\r\n')).decode('latin-1').split('\r\n')
    headers = {name.lower(): value for name, _, value in (line.partition(': ') for line in lines[1:])}
    if 'set-cookie' in headers:
      self._cookie = headers['set-cookie'].partition(';')[0]
    return int(lines[0].split()[1]), await reader.readexactly(int(headers.get('content-length', 0)))

  async def upload(self, chance: random.Random) -> str:
    """Uploads a picture of its own; returns the path of its prompts."""
    for _ in range(100):
      status, body = await self.request('POST', '/api/images', picture(chance.randrange(10**6)))
      if status == 201:
        return f'/api/images/{json.loads(body)["id"]}/prompts'
      await asyncio.sleep(0.2)
    raise SystemExit(f'no picture was taken: {status}')

  def close(self) -> None:
    if self._streams is not None:
      self._streams[1].close()
      self._streams = None


def picture(seed: int) -> bytes:
  """A JPEG file of a few coloured discs."""
  rng = np.random.default_rng(seed)
  pixels = np.asarray(Image.fromarray(rng.integers(90, 160, (6, 8, 3), np.uint8)).resize((320, 240))).copy()
  y, x = np.mgrid[:240, :320]
  for _ in range(5):
    centre_x, centre_y, radius = rng.uniform(40, 280), rng.uniform(40, 200), rng.uniform(15, 35)
    pixels[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = rng.integers(0, 256, 3)
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'JPEG', quality=90)
  return stream.getvalue()


def prompt(chance: random.Random, kind: str = '') -> bytes:
  """A click, or a sentence that few others write."""
  if (kind or chance.choice(['click', 'sentence'])) == 'click':
    return json.dumps({'points': [[chance.uniform(20, 300), chance.uniform(20, 220)]]}).encode()
  place = chance.choice(['', 'on the left ', 'on the right ', 'at the top '])
  size = chance.choice(['large', 'small'])
  return json.dumps({'text': f'the {size} {chance.choice(COLOURS)} {chance.choice(KINDS)} {place}'.strip()}).encode()


class Tally:
  """Statuses and seconds of requests."""

  def __init__(self):
    self.statuses: collections.Counter[int] = collections.Counter()
    self.seconds: list[float] = []

  async def count(self, answer: Awaitable[tuple[int, bytes]]) -> int:
    began = time.perf_counter()
    status, _ = await answer
    self.statuses[status] += 1
    if status == 200:
      self.seconds.append(time.perf_counter() - began)
    return status

  def figures(self) -> dict:
    ordered = sorted(self.seconds) or [float('nan')]
    at = lambda share: round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 1)
    statuses = {str(status): count for status, count in sorted(self.statuses.items())}
    return {'statuses': statuses, 'p50_ms': at(0.5), 'p99_ms': at(0.99), 'most_ms': at(1)}


async def users(server: Server, options: argparse.Namespace) -> dict:
  """People with a picture each, who think before they ask."""
  tally, end = Tally(), time.perf_counter() + options.seconds

  async def person(number: int) -> None:
    chance, client = random.Random(number), Client(server.port)
    await asyncio.sleep(chance.uniform(0, THINK))
    path = await client.upload(chance)
    while time.perf_counter() < end:
      await tally.count(client.request('POST', path, prompt(chance)))
      await asyncio.sleep(chance.expovariate(1 / THINK))
    client.close()

  await asyncio.gather(*map(person, range(options.users)))
  return {
    'users': options.users,
    'seconds': options.seconds,
    'think_seconds': THINK,
    'start_seconds': round(server.start_seconds, 1),
    **tally.figures(),
    'per_second': round(sum(tally.statuses.values()) / options.seconds, 1),
    'megabytes': server.megabytes(),
  }


async def memory(server: Server, options: argparse.Namespace) -> dict:
  """Uploads, prompts and one-time pictures, and what the server holds in between."""
  tally, held = Tally(), []
  tenth = max(1, options.requests // 10)

  async def client(number: int, requests: int) -> None:
    chance, session = random.Random(number), Client(server.port)
    path = await session.upload(chance)
    for count in range(requests):
      if count % 5 == 4:
        path = await session.upload(chance)
      else:
        await tally.count(session.request('POST', path, prompt(chance)))
    session.close()

  for _ in range(10):
    await asyncio.gather(*(client(random.randrange(10**9), max(1, tenth // CLIENTS)) for _ in range(CLIENTS)))
    held.append(server.megabytes())
  return {**tally.figures(), 'megabytes_after_tenths': held}


async def overload(server: Server, options: argparse.Namespace) -> dict:
  """Requests at a fixed rate, whatever becomes of the ones before."""
  seconds = options.seconds / 4
  bears = await throughput(server, seconds)
  rate = options.times * bears
  tally, waiting, unsent = Tally(), set(), 0
  chance = random.Random(0)
  owners = [Client(server.port) for _ in range(20)]
  sessions = [(await owner.upload(chance), owner._cookie) for owner in owners]
  free = collections.deque()
  for number in range(MOST_OPEN):
    client = Client(server.port)
    path, client._cookie = sessions[number % len(sessions)]
    free.append((client, path))

  async def one(client: Client, path: str) -> None:
    await tally.count(client.request('POST', path, prompt(chance)))
    free.append((client, path))

  began = time.perf_counter()
  for number in range(round(rate * seconds)):
    await asyncio.sleep(max(0, began + number / rate - time.perf_counter()))
    if not free:
      unsent += 1
      continue
    task = asyncio.create_task(one(*free.popleft()))
    waiting.add(task)
    task.add_done_callback(waiting.discard)
  await asyncio.gather(*waiting)
  after = []
  for _ in range(5):
    started = time.perf_counter()
    status, _ = await owners[0].request('POST', sessions[0][0], prompt(chance))
    after.append([status, round(1000 * (time.perf_counter() - started), 1)])
  for client in (*owners, *(client for client, _ in free)):
    client.close()
  return {
    'bears_per_second': round(bears, 1),
    'asked_per_second': round(rate, 1),
    **tally.figures(),
    'lost': tally.statuses[0],
    'not_sent_by_this_client': unsent,
    'afterwards_status_ms': after,
  }


async def throughput(server: Server, seconds: float, kind: str = '') -> float:
  """Answers per second to clients that ask again at once."""
  tally, end = Tally(), time.perf_counter() + seconds

  async def client(number: int) -> None:
    chance, session = random.Random(number), Client(server.port)
    path = await session.upload(chance)
    while time.perf_counter() < end:
      await tally.count(session.request('POST', path, prompt(chance, kind)))
    session.close()

  began = time.perf_counter()
  await asyncio.gather(*map(client, range(CLIENTS)))
  assert set(tally.statuses) == {200}, tally.statuses
  return tally.statuses[200] / (time.perf_counter() - began)


if __name__ == '__main__':
  main()
