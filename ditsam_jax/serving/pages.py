"""The page's files, read once at the start; no other paths are served."""

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_FOLDER = Path(__file__).with_name('page')
_TYPES = {
  '.html': 'text/html; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.jpg': 'image/jpeg',
  '.svg': 'image/svg+xml',
}


class Page:
  """A static file with its ETag."""

  def __init__(self, content: bytes, media_type: str):
    self._content, self._type = content, media_type
    self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

  async def __call__(self, request: Request) -> Response:
    headers = {'ETag': self._etag, 'Cache-Control': 'no-cache'}
    if request.headers.get('if-none-match') == self._etag:
      return Response(status_code=304, headers=headers)
    return Response(self._content, media_type=self._type, headers=headers)


def files() -> dict[str, Page]:
  """Returns the page's files by URL path; index.html is '/'."""
  found = {}
  for file in sorted(_FOLDER.rglob('*')):
    if file.suffix in _TYPES:
      name = file.relative_to(_FOLDER).as_posix()
      found['/' if name == 'index.html' else f'/{name}'] = Page(file.read_bytes(), _TYPES[file.suffix])
  return found
