"""Requests to the service: damaged images, forms, prompts and heads. It answers each with 2xx or 4xx, and lives on."""

import contextlib
import functools
import json
import random
import socket
from pathlib import Path

from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from tests.fuzz import images
from tests.fuzz.mutations import TEXTS, changed, damaged, damaged_json
from tests.fuzz.outcomes import ACCEPTED, REFUSED, Violation, check_line, strict_json
from tests.fuzz.seeds import picture, save_text_model
from tests.serving.running import Answer, Client, Running, form, png, running

MOST_MEMORY = 2**30
_LIMITS = Limits(kept_bytes=2**24, pixels=2**20, upload_seconds=5, header_seconds=5, seconds=200)
_PROMPT = {
  'text': 'the red circle',
  'points': [[3, 4], [5, 6]],
  'labels': [1, 0],
  'box': [1, 2, 30, 20],
  'multimask': True,
}
_PATHS = [
  '/',
  '/api/images',
  '/api/images/x',
  '/api/images/x/prompts',
  '/api/segment',
  '/api/words',
  '/api/model',
  '/metrics',
]


def prepare(folder: Path) -> None:
  save_text_model(folder / 'model')
  (folder / 'images').mkdir()
  images.prepare(folder / 'images')


@functools.cache
def _service(made: Path) -> tuple[Running, Client, contextlib.ExitStack]:
  opened = contextlib.ExitStack()  # which ends with the process
  service = opened.enter_context(running(Segmenter(made / 'model', batch_size=2), _LIMITS))
  return service, service.client(), opened


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  service, client, _ = _service(made)
  match kind := chance.choice(['image', 'image', 'form', 'prompt', 'prompt', 'prompt', 'head', 'path']):
    case 'image':
      answer = client.post('/api/images', _image(made, chance))
    case 'form':
      prompt = damaged_json(_PROMPT, chance)[0] if chance.random() < 0.6 else json.dumps(_PROMPT).encode()
      body, media = form(image=_image(made, chance), prompt=prompt.decode('latin-1'))
      if chance.random() < 0.4:
        body, _ = damaged(body, chance)
      answer = client.post(chance.choice(['/api/segment', '/api/images']), body, Content_Type=media)
    case 'prompt':
      content = [_PROMPT] * 2 if chance.random() < 0.2 else _PROMPT
      body, what = damaged_json(content, chance)
      note(what)
      answer = client.post(f'{client.upload(picture())}/prompts', body)
    case 'head':
      return _head(service, chance, note)
    case _:
      text = ''.join(c for c in chance.choice(TEXTS) if ' ' < c < '\x7f')[:1000]
      path = chance.choice(_PATHS) + chance.choice(
        ['', '/', '/..', '%2e%2e/', '%00', '?candidate=', f'/{text}', f'?{text}']
      )
      note(path[:80])
      body = json.dumps(changed(_PROMPT, chance)[0], default=str).encode()
      answer = client.request(chance.choice(['GET', 'POST', 'DELETE', 'PUT', 'HEAD', 'OPTIONS']), path, body)
  note(kind)
  return _checked(answer)


def _checked(answer: Answer) -> str:
  if answer.status not in (200, 201, 204, 304, 400, 403, 404, 405, 408, 413, 415):
    raise Violation('status', f'{answer.status}: {answer.body[:300]!r}')
  if answer.headers.get_content_type() == 'application/json' and answer.body:
    content = strict_json(answer.body)
    if answer.status >= 400:
      check_line(content['error'])
    elif isinstance(content, dict):
      for mask in content.get('masks', []):
        if not isinstance(mask['score'], float):
          raise Violation('wrong result', f'score {mask["score"]!r}')
  return ACCEPTED if answer.status < 400 else REFUSED


def _image(made: Path, chance: random.Random) -> bytes:
  files = sorted((made / 'images').iterdir())
  data = chance.choice(files).read_bytes()
  for _ in range(chance.choice([0, 1, 1, 3])):
    data, _ = damaged(data, chance, chance.choice(files).read_bytes())
  return data


def _head(service: Running, chance: random.Random, note) -> str:
  """Bytes that are nearly a request; the connection is half closed after them."""
  data = png(picture())
  head = f'POST /api/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n'
  sent, what = damaged(head.encode() + data, chance)
  note(what)
  found = b''
  with (
    socket.create_connection(('127.0.0.1', service.port), timeout=30) as connection,
    contextlib.suppress(ConnectionError),
  ):
    connection.sendall(sent)
    if chance.random() < 0.5:
      connection.shutdown(socket.SHUT_WR)
    while more := connection.recv(65536):
      found += more
  if found and not found.startswith((b'HTTP/1.1 2', b'HTTP/1.1 4')):
    raise Violation('status', repr(found[:200]))
  return ACCEPTED if found.startswith(b'HTTP/1.1 2') else REFUSED
