"""Checks every request, and adds headers and error messages to every answer."""

import hmac
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ditsam_jax.errors import UserError
from ditsam_jax.serving.metrics import Metrics
from ditsam_jax.serving.refusals import Refused

LOOPBACK = ('localhost', '127.0.0.1', '::1')
_CHANGING = ('POST', 'PUT', 'PATCH', 'DELETE')
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
}
_GONE = 499  # in the metrics: the client disconnected before its answer

Endpoint = Callable[[Request], Awaitable[Response]]


class Guard:
  """Wraps the application: checks hosts and origins, adds headers, and counts answers.

  Args:
    app: the application.
    metrics: counts answers.
    hosts: allowed names in the Host header, which prevents DNS rebinding; None allows any.
  """

  def __init__(self, app: ASGIApp, metrics: Metrics, hosts: tuple[str, ...] | None):
    self._app, self._metrics, self._hosts = app, metrics, hosts

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope['type'] != 'http':
      await self._app(scope, receive, send)
      return
    began, status = time.perf_counter(), _GONE

    async def answer(message: Message) -> None:
      nonlocal status
      if message['type'] == 'http.response.start':
        status = message['status']
        names = {name.lower() for name, _ in message['headers']}
        more = [
          (name.encode(), value.encode()) for name, value in _HEADERS.items() if name.lower().encode() not in names
        ]
        message = {**message, 'headers': [*message['headers'], *more]}
      await send(message)

    try:
      if problem := self._problem(Request(scope)):
        await refusal(problem)(scope, receive, answer)
      else:
        await self._app(scope, receive, answer)
    finally:
      route = scope.get('route')
      self._metrics.request(
        getattr(route, 'path', 'none'), _method(scope['method']), status, time.perf_counter() - began
      )

  def _problem(self, request: Request) -> Refused | None:
    host = _host(request.headers.get('host', ''))
    if self._hosts is not None and host not in self._hosts:
      return Refused(403, f'host {host!r} is not one of {", ".join(self._hosts)}; see --allow-host')
    if request.method in _CHANGING:
      site, origin = request.headers.get('sec-fetch-site', 'none'), request.headers.get('origin')
      foreign = origin is not None and origin.partition('://')[2] != request.headers.get('host')
      if site not in ('same-origin', 'none') or foreign:
        return Refused(403, 'requests from pages of other sites are refused')
    return None


def checked_token(token: str | None) -> Callable[[Request], None]:
  """Returns a check that raises Refused unless a request has the token; None accepts all requests."""

  def check(request: Request) -> None:
    if token is None:
      return
    scheme, _, given = request.headers.get('authorization', '').partition(' ')
    if scheme.lower() != 'bearer' or not hmac.compare_digest(given.strip().encode(), token.encode()):
      raise Refused(401, 'this service requires a token: Authorization: Bearer TOKEN')

  return check


def answered(endpoint: Endpoint) -> Endpoint:
  """Returns the endpoint with errors converted to one line of JSON and the matching status."""

  async def call(request: Request) -> Response:
    try:
      return await endpoint(request)
    except Refused as error:
      return refusal(error)
    except UserError as error:
      return refusal(Refused(400, str(error)))
    except HTTPException as error:
      return refusal(Refused(error.status_code, str(error.detail)))
    except ClientDisconnect:
      return Response(status_code=_GONE)  # never read
    except Exception as error:
      if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error):
        return refusal(Refused(503, 'not enough memory at the moment', 5))
      if isinstance(error, OSError) and error.errno:
        print(f'error: {error}', file=sys.stderr, flush=True)
        return refusal(Refused(503, 'the server cannot store the upload at the moment', 5))
      traceback.print_exception(error)  # a bug
      return refusal(Refused(500, 'internal error; see the server log'))

  return call


async def no_such_page(request: Request, error: Exception) -> Response:
  """Answers unknown paths and wrong methods."""
  assert isinstance(error, HTTPException)
  answer = refusal(Refused(error.status_code, f'{request.method} {request.url.path}: {error.detail}'))
  answer.headers.update(error.headers or {})
  return answer


def refusal(error: Refused) -> JSONResponse:
  """Returns a refusal as JSON: {"error": one line}."""
  headers = {'Cache-Control': 'no-store'}
  if error.retry_after is not None:
    headers['Retry-After'] = str(error.retry_after)
  if error.status == 401:
    headers['WWW-Authenticate'] = 'Bearer'
  content: dict[str, Any] = {'error': error.message}
  return JSONResponse(content, error.status, headers)


def _host(header: str) -> str:
  """Returns the name in a Host header, without the port."""
  name = header.strip().lower()
  if name.startswith('['):
    return name[1:].partition(']')[0]
  return name.partition(':')[0]


def _method(name: str) -> str:
  return name if name in ('GET', 'HEAD', 'OPTIONS', *_CHANGING) else 'other'
