"""A server that speaks the Hub's protocol for files: revisions, trees, redirects of large files, error codes."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LARGE = 10_000  # bytes from which a file is kept in large-file storage, and answered with a redirect


class Hub:
  """Repositories by name, each with commits by branch or tag."""

  def __init__(self):
    self.revisions: dict[str, dict[str, str]] = {}  # repository -> branch or tag -> commit
    self.files: dict[tuple[str, str], dict[str, bytes]] = {}  # (repository, commit) -> path -> content
    self.gated: set[str] = set()
    self.asked: list[tuple[str, str]] = []  # method and path of every request
    self.port = 0
    self.broken = False  # answers every request with 500
    self.refusal: tuple[int, str] | None = None  # answers every request with this status and message

  @property
  def endpoint(self) -> str:
    return f'http://127.0.0.1:{self.port}'

  def push(self, repository: str, folder: Path, *, tag: str | None = None, under: str = '') -> str:
    """Commits a folder's files to `main`, and tags the commit; returns it."""
    files = {
      under + file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob('*') if file.is_file()
    }
    digest = hashlib.sha1(repr(sorted((name, content) for name, content in files.items())).encode()).hexdigest()
    self.files[repository, digest] = files
    self.revisions.setdefault(repository, {})['main'] = digest
    if tag:
      self.revisions[repository][tag] = digest
    return digest

  def commit(self, repository: str, revision: str) -> str | None:
    known = self.revisions[repository]
    return known.get(revision) or (revision if (repository, revision) in self.files else None)


class _Handler(BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  hub: Hub

  def log_message(self, *_):
    pass

  def do_GET(self):
    self._answer(body=True)

  def do_HEAD(self):
    self._answer(body=False)

  def _answer(self, *, body: bool) -> None:
    self.hub.asked.append((self.command, self.path))
    status, headers, content = self._route(urllib.parse.unquote(urllib.parse.urlsplit(self.path).path))
    self.send_response(status)
    for name, value in ({'Content-Length': str(len(content))} | headers).items():
      self.send_header(name, value)
    self.end_headers()
    if body:
      self.wfile.write(content)

  def _route(self, path: str) -> tuple[int, dict[str, str], bytes]:
    hub = self.hub
    if hub.broken:
      return 500, {}, b'{}'
    if hub.refusal:
      status, message = hub.refusal
      return status, {'X-Error-Message': message}, b'{}'
    match path.strip('/').split('/'):
      case ['cdn', digest]:
        content = next(c for files in hub.files.values() for c in files.values() if _sha256(c) == digest)
        return 200, {'ETag': f'"{digest}"'}, content
      case ['api', 'models', owner, name, kind, *rest] if kind in ('revision', 'tree'):
        repository, revision = f'{owner}/{name}', rest[0] if kind == 'tree' else '/'.join(rest)
        if refusal := self._refusal(repository, revision):
          return refusal
        commit = hub.commit(repository, revision)
        files = hub.files[repository, commit]
        if kind == 'revision':
          answer = {'id': repository, 'sha': commit, 'siblings': [{'rfilename': name} for name in files]}
        else:
          answer = [_entry(name, content) for name, content in files.items()]
        return 200, {'Content-Type': 'application/json'}, json.dumps(answer).encode()
      case [owner, name, 'resolve', revision, *parts]:
        repository = f'{owner}/{name}'
        if refusal := self._refusal(repository, revision):
          return refusal
        commit = hub.commit(repository, revision)
        content = hub.files[repository, commit].get('/'.join(parts))
        if content is None:
          return 404, {'X-Error-Code': 'EntryNotFound'}, b'{}'
        headers = {'X-Repo-Commit': commit, 'ETag': f'"{_sha256(content)}"'}
        if len(content) < LARGE:
          return 200, headers, content
        linked = {'X-Linked-ETag': f'"{_sha256(content)}"', 'X-Linked-Size': str(len(content))}
        return 302, headers | linked | {'Location': f'http://localhost:{hub.port}/cdn/{_sha256(content)}'}, b''
    return 404, {}, b'{}'

  def _refusal(self, repository: str, revision: str) -> tuple[int, dict[str, str], bytes] | None:
    if repository in self.hub.gated:
      return 403, {'X-Error-Code': 'GatedRepo'}, b'{}'
    if repository not in self.hub.revisions:
      return 401, {'X-Error-Code': 'RepoNotFound'}, b'{}'
    if self.hub.commit(repository, revision) is None:
      return 404, {'X-Error-Code': 'RevisionNotFound'}, b'{}'
    return None


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _entry(path: str, content: bytes) -> dict:
  digest = hashlib.sha1(content).hexdigest()
  entry = {'type': 'file', 'path': path, 'size': len(content), 'oid': digest}
  if len(content) >= LARGE:
    entry['lfs'] = {'oid': _sha256(content), 'size': len(content), 'pointerSize': 134}
  return entry


@contextlib.contextmanager
def running() -> Iterator[Hub]:
  """Runs a hub on a free port of this machine."""
  hub = Hub()
  server = ThreadingHTTPServer(('127.0.0.1', 0), type('Handler', (_Handler,), {'hub': hub}))
  server.daemon_threads = True
  hub.port = server.server_address[1]
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.05}, daemon=True)
  thread.start()
  try:
    yield hub
  finally:
    server.shutdown()
    server.server_close()
    thread.join(10)
