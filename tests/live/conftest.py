"""The live page on a plain file server, in Chromium."""

import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

LIVE = Path(__file__).parents[2] / 'docs' / 'live'


@contextlib.contextmanager
def file_server(folder: Path) -> Iterator[str]:
  """Serves a folder; yields its URL."""

  class Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments, **settings):
      super().__init__(*arguments, directory=str(folder), **settings)

    def log_message(self, *_):
      pass

  server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
  thread.start()
  try:
    yield f'http://127.0.0.1:{server.server_address[1]}/'
  finally:
    server.shutdown()
    server.server_close()
    thread.join(10)


@pytest.fixture(scope='module')
def modules(browser):
  """A page of the sources' folder, to import modules that need neither a model nor ONNX Runtime."""
  with file_server(LIVE) as url:
    page = browser.new_context(bypass_csp=True).new_page()  # playwright evaluates strings
    page.route('**/main.js', lambda route: route.abort())  # needs what build.py adds
    page.goto(url)
    yield page
    page.context.close()


@pytest.fixture(scope='session')
def site(tmp_path_factory):
  """The URL of the page as build.py puts it together."""
  spec = importlib.util.spec_from_file_location('build', LIVE / 'build.py')
  build = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(build)
  folder = tmp_path_factory.mktemp('site')
  try:
    build.assemble(folder)
  except build.Unavailable as error:
    pytest.skip(str(error))
  with file_server(folder) as url:
    yield url
