"""The HTTP API, as an ASGI application."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import functools
import io
import json
import secrets
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving import answers, guard, openapi, pages, requests
from ditsam_jax.serving.batcher import Batcher
from ditsam_jax.serving.everything import Everything
from ditsam_jax.serving.images import ImageStore, Kept
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.metrics import CONTENT_TYPE, Metrics
from ditsam_jax.serving.refusals import Refused
from ditsam_jax.storage.image_files import read_opened

SESSION = 'ditsam_session'
_SWEEP = 30.0  # seconds between removals of expired images
_PNG = 'image/png'
_T = TypeVar('_T')


@dataclasses.dataclass
class State:
  """The service's progress.

  Attributes:
    compiled: number of compiled programs.
    programs: number of programs to compile.
    ready: whether all programs are compiled.
    stopping: whether the service is shutting down.
  """

  compiled: int = 0
  programs: int = 0
  ready: bool = False
  stopping: bool = False


class Service:
  """A model, its clients' images, and the endpoints."""

  def __init__(
    self,
    segmenter: Segmenter,
    name: str,
    limits: Limits,
    *,
    token: str | None = None,
    masks: Mapping[str, Any] = MappingProxyType({}),
  ):
    """Starts the threads.

    Args:
      segmenter: the model.
      name: the model's name for clients.
      limits: limits on requests.
      token: token that clients must send; None for none.
      masks: arguments of SamAutomaticMaskGenerator that differ from Meta's, for "everything".
    """
    self.segmenter, self.name, self.limits = segmenter, name, limits
    self.state = State()
    self.metrics = Metrics()
    self.store = ImageStore(limits.kept_bytes, limits.kept_seconds)
    self.batcher = Batcher(segmenter, limits, self.metrics)
    self.everything = Everything(segmenter, limits, masks)
    self._check_token = guard.checked_token(token)
    self._decoders = concurrent.futures.ThreadPoolExecutor(limits.decoding, 'decode')
    self._uploads = 0
    watch = self.metrics.watch
    watch('queue_prompts', 'Prompts waiting for the device', lambda: len(self.batcher))
    watch('images', 'Stored images', lambda: len(self.store))
    watch('images_bytes', 'Bytes of stored images', lambda: self.store.bytes)
    watch('images_evicted', 'Images evicted to make room', lambda: self.store.evicted)
    watch('uploads', 'Images being received or decoded', lambda: self._uploads)
    watch('ready', 'Whether all programs are compiled', lambda: self.state.ready)

  def app(self, hosts: tuple[str, ...] | None) -> ASGIApp:
    """Returns the application; for `hosts` see `guard.Guard`."""
    api: list[tuple[str, str, guard.Endpoint]] = [
      ('GET', '/api/model', self._model),
      ('POST', '/api/words', self._words),
      ('POST', '/api/images', self._upload),
      ('DELETE', '/api/images/{id}', self._forget),
      ('POST', '/api/images/{id}/prompts', self._prompts),
      ('POST', '/api/images/{id}/everything', self._everything),
      ('POST', '/api/segment', self._segment),
      ('GET', '/metrics', self._metrics),
    ]
    document = openapi.document(self.name, self.limits)
    static: dict[str, guard.Endpoint] = {
      '/healthz': self._healthz,
      '/readyz': self._readyz,
      '/openapi.json': pages.Page(json.dumps(document).encode(), 'application/json'),
      '/docs': pages.Page(openapi.page(document).encode(), 'text/html; charset=utf-8'),
      **pages.files(),
    }
    routes = [Route(path, guard.answered(self._allowed(endpoint)), methods=[method]) for method, path, endpoint in api]
    routes += [Route(path, guard.answered(endpoint), methods=['GET']) for path, endpoint in static.items()]
    app = Starlette(routes=routes, lifespan=self._lifespan, exception_handlers={HTTPException: guard.no_such_page})
    app.router.redirect_slashes = False
    return guard.Guard(app, self.metrics, hosts)

  def close(self) -> None:
    """Finishes pending work and ends the threads."""
    self.batcher.close()
    self.everything.close()
    self._decoders.shutdown(cancel_futures=True)

  @contextlib.asynccontextmanager
  async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
    async def sweep() -> None:
      while True:
        await asyncio.sleep(_SWEEP)
        self.store.expire()

    task = asyncio.create_task(sweep())
    yield
    task.cancel()

  def _allowed(self, endpoint: guard.Endpoint) -> guard.Endpoint:
    async def call(request: Request) -> Response:
      self._check_token(request)
      return await endpoint(request)

    return call

  def _check_ready(self) -> None:
    if self.state.stopping:
      raise Refused(503, 'the service is stopping', 5)
    if not self.state.ready:
      raise Refused(503, f'compiling programs: {self.state.compiled} of {self.state.programs or "many"} done', 2)

  async def _healthz(self, request: Request) -> Response:
    return JSONResponse({'status': 'alive'})

  async def _readyz(self, request: Request) -> Response:
    self._check_ready()
    return JSONResponse({'status': 'ready'})

  async def _metrics(self, request: Request) -> Response:
    return Response(self.metrics.page(), media_type=CONTENT_TYPE)

  async def _model(self, request: Request) -> Response:
    config, limits = self.segmenter.config, self.limits
    return _json(
      {
        'model': self.name,
        'text': config.text_encoder is not None,
        'image_size': config.image_size,
        'mask_prompt_side': 4 * config.grid,
        'ready': self.state.ready,
        'limits': {
          name: getattr(limits, name)
          for name in ('upload_bytes', 'pixels', 'prompts', 'points', 'text_bytes', 'kept_seconds')
        },
      }
    )

  async def _words(self, request: Request) -> Response:
    content = await requests.read_json(request, self.limits)
    prompt = requests.asked(content, self.segmenter, self.limits).prompt
    if prompt.text is None or self.segmenter.tokenizer is None:
      return _json({'unknown': [], 'places': [], 'cut': ''})
    text, tokenizer = prompt.text, self.segmenter.tokenizer
    places = tokenizer.unknown_places(text)
    return _json({'unknown': tokenizer.unknown(text), 'places': places, 'cut': tokenizer.cut(text)})

  async def _upload(self, request: Request) -> Response:
    self._check_ready()
    session = request.cookies.get(SESSION, '')
    owner = session if _is_session(session) else secrets.token_urlsafe(24)
    with self._receiving():
      if requests.is_form(request):
        file, prompt = await requests.read_form(request, self.limits)
        if prompt is not None:
          file.close()
          raise Refused(400, 'a prompt with an upload: send it to /api/images/ID/prompts, or both to /api/segment')
      else:
        file = await requests.read_file(request, self.limits)
      kept = self.store.add(owner, await self._framed(request, file))
    self.batcher.prepare(kept.framed)
    height, width = kept.framed.size
    answer = _json(
      {'id': kept.id, 'width': width, 'height': height, 'kept_seconds': self.limits.kept_seconds}, status=201
    )
    answer.headers['Location'] = f'/api/images/{kept.id}/prompts'
    if owner != session:
      secure = request.url.scheme == 'https'
      answer.set_cookie(SESSION, owner, path='/api', secure=secure, httponly=True, samesite='strict')
    return answer

  async def _forget(self, request: Request) -> Response:
    self.store.drop(self._image(request))
    return Response(status_code=204)

  async def _prompts(self, request: Request) -> Response:
    self._check_ready()
    content = await requests.read_json(request, self.limits)
    return await self._answer(request, self._image(request), content)

  async def _segment(self, request: Request) -> Response:
    self._check_ready()
    if not requests.is_form(request):
      raise Refused(415, 'expected multipart/form-data with a file image and a field prompt, the JSON of a prompt')
    with self._receiving():
      file, prompt = await requests.read_form(request, self.limits)
      try:  # before the image is decoded
        if prompt is None:
          raise Refused(400, 'the form has no field prompt: expected the JSON of a prompt, such as {"text": "a dog"}')
        content = requests.parsed(prompt.encode('utf-8', 'surrogatepass'), 'the field prompt')
        requests.prompts_of(content, self.segmenter, self.limits)
      except BaseException:
        file.close()
        raise
      framed = await self._framed(request, file)
      kept = self.store.add(secrets.token_urlsafe(24), framed)
    with self.store.hold(kept):
      self.store.drop(kept)
      return await self._answer(request, kept, content)

  async def _everything(self, request: Request) -> Response:
    self._check_ready()
    text = requests.phrase(await requests.read_json(request, self.limits), self.segmenter, self.limits)
    kept = self._image(request)  # after the body has arrived: until it is held, its memory does not count
    gone = threading.Event()
    future = self.everything.submit(kept.framed, text, lambda: not gone.is_set())
    self._hold(kept, [future])
    try:
      found = await self._until_gone(request, asyncio.wrap_future(future), self.limits.everything_seconds)
    finally:
      gone.set()
    return _json(found | {'model': self.name})

  async def _answer(self, request: Request, kept: Kept, content: Any) -> Response:
    began = time.perf_counter()
    asked = requests.prompts_of(content, self.segmenter, self.limits)
    as_png = _wants_png(request)
    if as_png and len(asked) > 1:
      raise Refused(400, f'{len(asked)} prompts for one PNG file: send one, or use Accept: application/json')
    candidate = _candidate(request)
    low_res = [each.low_res for each in asked]

    def answer(prediction):
      if not as_png:
        return answers.as_json(prediction, any(low_res))
      which = prediction.best if candidate is None else min(candidate, len(prediction.masks) - 1)
      return answers.as_png(prediction.masks[which]), float(prediction.scores[which])

    futures = self.batcher.submit(
      request.cookies.get(SESSION) or _address(request), kept.framed, [each.prompt for each in asked], answer
    )
    self._hold(kept, futures)
    found = await self._until_gone(request, _all(futures), self.limits.seconds)
    seconds = time.perf_counter() - began
    if as_png:
      png, score = found[0]
      return Response(png, media_type=_PNG, headers={'Cache-Control': 'no-store', 'X-Score': f'{score:.6f}'})
    height, width = kept.framed.size
    common = {'width': width, 'height': height, 'model': self.name, 'seconds': round(seconds, 6)}
    return _json([one | common for one in found] if isinstance(content, list) else found[0] | common)

  def _hold(self, kept: Kept, futures: list[concurrent.futures.Future]) -> None:
    """Holds an image until the futures are done, even if nobody waits for them: what runs may go on."""
    loop = asyncio.get_running_loop()
    for future in futures:
      held = contextlib.ExitStack()
      held.enter_context(self.store.hold(kept))
      future.add_done_callback(functools.partial(_release, loop, held))

  async def _framed(self, request: Request, file: io.BufferedReader) -> Framed:
    def read() -> Framed:
      return frame(read_opened(file, 'the image', most_pixels=self.limits.pixels), self.segmenter.config)

    future = asyncio.wrap_future(self._decoders.submit(read))
    return await self._until_gone(request, future, self.limits.seconds)

  async def _until_gone(self, request: Request, work: Awaitable[_T], seconds: float) -> _T:
    """Awaits `work`; cancels it if the client disconnects or the time is up."""
    task = asyncio.ensure_future(work)
    gone = asyncio.create_task(_disconnected(request))
    try:
      await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
      if task.done():
        return task.result()
      if gone.done():
        raise ClientDisconnect
      raise Refused(504, f'no answer within {seconds:g} seconds')
    finally:
      gone.cancel()
      task.cancel()

  def _image(self, request: Request) -> Kept:
    try:
      kept = self.store.get(request.cookies.get(SESSION, ''), request.path_params['id'])
    except Refused:
      self.metrics.image(found=False)
      raise
    self.metrics.image(found=True)
    return kept

  @contextlib.contextmanager
  def _receiving(self) -> Iterator[None]:
    if self._uploads >= self.limits.uploads:
      raise Refused(503, f'{self._uploads} images are being received', 2)
    self._uploads += 1
    try:
      yield
    finally:
      self._uploads -= 1


def _release(loop: asyncio.AbstractEventLoop, held: contextlib.ExitStack, _: concurrent.futures.Future) -> None:
  with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the store
    loop.call_soon_threadsafe(held.close)


async def _all(futures: list[concurrent.futures.Future]) -> list[Any]:
  wrapped = [asyncio.wrap_future(future) for future in futures]
  try:
    return await asyncio.gather(*wrapped)
  finally:
    for future in wrapped:
      future.cancel()


async def _disconnected(request: Request) -> None:
  while (await request.receive())['type'] != 'http.disconnect':
    pass


def _json(content: Any, status: int = 200) -> JSONResponse:
  return JSONResponse(content, status, {'Cache-Control': 'no-store'})


def _wants_png(request: Request) -> bool:
  return request.headers.get('accept', '').partition(';')[0].strip().lower() == _PNG


def _candidate(request: Request) -> int | None:
  value = request.query_params.get('candidate')
  if value is None:
    return None
  if value not in ('0', '1', '2'):
    raise Refused(400, f'candidate={value}: expected 0, 1 or 2')
  return int(value)


def _is_session(text: str) -> bool:
  return len(text) == 32 and text.isascii()


def _address(request: Request) -> str:
  return request.client.host if request.client else ''
