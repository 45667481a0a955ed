"""Runs the service: listens, compiles, and shuts down gracefully.

uvicorn runs in its own thread, so `interruption` handles signals: the first one stops the service after current
requests, a second Ctrl-C ends it at once.
"""

import contextlib
import os
import resource
import signal
import socket
import threading

import uvicorn

from ditsam_jax import command_line, interruption
from ditsam_jax.errors import UserError
from ditsam_jax.serving import programs
from ditsam_jax.serving.app import Service
from ditsam_jax.serving.connections import bounded
from ditsam_jax.terminal import printable, say

_FINISH = 7  # seconds to finish current requests
_END = 9.5  # seconds after which the process ends regardless
_FILES = 8192  # maximum number of open files, including sockets
_OTHER_FILES = 200  # left for uploads and libraries


def listen(host: str, port: int) -> socket.socket:
  """Returns a listening socket. Raises UserError if that is impossible."""
  try:
    family, kind, protocol, _, address = socket.getaddrinfo(
      host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listening = socket.socket(family, kind, protocol)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(address)
    listening.listen(2048)
    return listening
  except (OSError, UnicodeError) as error:
    reason = getattr(error, 'strerror', None) or error
    raise UserError(
      f'cannot listen at {printable(host)}, port {port}: {reason}; choose another --host or --port'
    ) from error


def http_server(service: Service, hosts: tuple[str, ...] | None) -> uvicorn.Server:
  """Returns the HTTP server of a service; for `hosts` see `guard.Guard`."""
  config = uvicorn.Config(
    service.app(hosts),
    http=bounded(service.limits, _allow_sockets()),
    ws='none',
    loop='asyncio',
    lifespan='on',
    log_config=None,
    access_log=False,
    server_header=False,
    timeout_keep_alive=5,
    timeout_graceful_shutdown=_FINISH,
  )
  return uvicorn.Server(config)


def run(service: Service, listening: socket.socket, hosts: tuple[str, ...] | None, url: str) -> int:
  """Serves until a signal; returns the exit status."""
  stop = threading.Event()
  signals: list[int] = []
  failures: list[BaseException] = []

  def take(number: int) -> bool:
    if number == signal.SIGINT and signals:
      return False
    signals.append(number)
    stop.set()
    return True

  server = http_server(service, hosts)
  serving = threading.Thread(target=_serve, args=(server, listening, stop, failures), name='server', daemon=True)
  compiling = threading.Thread(target=_compile, args=(service, url, stop, failures), name='compile', daemon=True)
  with interruption.deferred(take):
    serving.start()
    compiling.start()
    while not stop.wait(3600):
      pass
    if signals:
      with contextlib.suppress(OSError):
        os.write(2, b'stopping after current requests\n')
    timer = threading.Timer(_END, os._exit, (0,))
    timer.daemon = True
    timer.start()
    service.state.stopping = True
    server.should_exit = True
    serving.join()
    service.close()
    if compiling.is_alive():  # XLA's threads crash during Python's shutdown
      interruption.end_process(command_line.explain(failures[0]) if failures else 0)
    timer.cancel()
  if failures:
    raise failures[0]
  return 0


def _serve(
  server: uvicorn.Server, listening: socket.socket, stop: threading.Event, failures: list[BaseException]
) -> None:
  try:
    server.run(sockets=[listening])
  except BaseException as error:
    failures.append(error)
  finally:
    stop.set()


def _compile(service: Service, url: str, stop: threading.Event, failures: list[BaseException]) -> None:
  state = service.state

  def progress(done: int, programs: int) -> None:
    state.compiled, state.programs = done, programs

  say(f'compiling programs for {service.name}; {url} answers when they are ready')
  try:
    service.batcher.pays_from.update(
      programs.compile_all(service.segmenter, service.limits.points, progress, stop.is_set)
    )
    service.everything.compile()
  except programs.Stopped:
    return
  except BaseException as error:
    failures.append(error)
    stop.set()
    return
  state.ready = True
  say(f'ready: {url} (Ctrl-C stops)')


def _allow_sockets() -> int:
  """Raises this process' limit on open files as far as the system lets it; returns how many may be connections."""
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if soft != resource.RLIM_INFINITY and soft < _FILES:
    soft = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
  return _FILES if soft == resource.RLIM_INFINITY else max(1, soft - _OTHER_FILES)
