"""Files in Google Cloud Storage: gs://BUCKET/NAME, read and written as whole objects.

Object stores have no rename and no append. An object appears whole or not at all, and can be written on the condition
that it does not exist, or has not changed. storage/numbered.py and storage/lease.py build on that.

Requests that fail with 429 or 5xx, are cut off, or get no answer for a minute, are repeated by gcsfs up to five times,
after pauses of half a minute in all. Uploads are compared with the MD5 that the store computed.
"""

import contextlib
import datetime
import errno
import fnmatch
import functools
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ditsam_jax.errors import UserError
from ditsam_jax.terminal import printable

SCHEME = 'gs://'
EXTRA = 'gcs'
PROBE = '.probe-'  # names of objects that are removed again at once
_AT_ONCE = 8  # transfers in parallel
_TRIES = 3  # of an upload as a whole, beside gcsfs' own
_IDLE = 60  # seconds until a request is sent again if no answer comes, or no more of one


class Entry(NamedTuple):
  """An object's properties, as computed by the store."""

  size: int
  checksum: str  # 'crc32c:...'
  version: str  # the generation, which changes with every write


class BucketError(OSError):
  """A request that failed; `strerror` says what to do."""


class Changed(Exception):
  """A conditional write failed: the object has changed."""


class BucketPath(PurePosixPath):
  """A path in a bucket with the methods of `pathlib.Path` that this library uses.

  Errors other than a missing object raise OSError; none is taken for "does not exist".
  """

  __slots__ = ()

  def __str__(self) -> str:
    return SCHEME + PurePosixPath.__str__(self).removeprefix('gs:').lstrip('/')

  def __fspath__(self) -> str:
    return str(self)

  @property
  def bucket(self) -> str:
    return self.parts[1]

  def absolute(self) -> 'BucketPath':
    return self

  def exists(self) -> bool:
    return self.is_file() or self.is_dir()

  def is_file(self) -> bool:
    return info(self) is not None

  def is_dir(self) -> bool:
    return bool(_listed(self, most=1))

  def iterdir(self) -> Iterator['BucketPath']:
    return iter([self / name for name in _children(self)])

  def glob(self, pattern: str) -> Iterator['BucketPath']:
    """Matches part by part, without `**`."""
    found = [self]
    for part in PurePosixPath(pattern).parts:
      found = [folder / name for folder in found for name in _children(folder) if fnmatch.fnmatchcase(name, part)]
    return iter(found)

  def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
    """Does nothing: there are no folders."""

  def read_bytes(self) -> bytes:
    return read(self)

  def read_text(self, encoding: str = 'utf-8') -> str:
    return read(self).decode(encoding)

  def write_bytes(self, data: bytes) -> None:
    write(self, data)

  def write_text(self, data: str, encoding: str = 'utf-8') -> None:
    write(self, data.encode(encoding))

  def unlink(self, missing_ok: bool = False) -> None:
    del missing_ok
    remove([self])


AnyPath = Path | BucketPath


def is_bucket(path: str | os.PathLike) -> bool:
  """Whether a path is in a bucket."""
  return os.fspath(path).startswith(SCHEME)


def check(path: BucketPath, *, writes: bool = False) -> None:
  """Raises UserError unless the bucket exists, is readable and, with `writes`, writable; removes its probe object."""
  _filesystem()
  try:
    _listed(path, most=1)
    if writes:
      probe = path / f'{PROBE}{secrets.token_hex(8)}'
      write(probe, b'')
      remove([probe])
  except OSError as error:
    raise UserError(f"'{printable(path)}' cannot be used: {error.strerror or error}") from error


def info(path: BucketPath) -> Entry | None:
  """Returns an object's properties, None if there is none. Raises OSError."""
  found = _described(path)
  return _entry(found) if found else None


def age(path: BucketPath) -> float:
  """Returns seconds since an object was written, by the store's clock; infinity if there is none. Raises OSError."""
  probe = path.with_name(f'{PROBE}{secrets.token_hex(8)}')
  write(probe, b'')
  try:
    now, then = (_described(one) for one in (probe, path))
    return (_time(now) - _time(then)).total_seconds() if now and then else float('inf')
  finally:
    remove([probe])


def entries(folder: BucketPath) -> dict[str, Entry]:
  """Returns the properties of all objects below a folder by relative name, sorted. Raises OSError."""
  start = len(_key(folder, is_folder=True))
  return {item['name'][start:]: _entry(item) for item in _listed(folder) if item['name'][start:]}


def read(path: BucketPath) -> bytes:
  """Returns an object's content. Raises OSError, FileNotFoundError if there is none."""
  return read_version(path)[0]


def read_version(path: BucketPath, seconds: float | None = None) -> tuple[bytes, str]:
  """Returns an object's content and version, within `seconds`. Raises OSError, FileNotFoundError if there is none."""
  with _explained(path):
    headers, content = _filesystem().call('GET', 'b/{}/o/{}', path.bucket, _key(path), alt='media', timeout=seconds)
  return content, headers.get('x-goog-generation', '')


def write(path: BucketPath, data: bytes, *, version: str | None = None, seconds: float | None = None) -> str:
  """Writes an object as a whole and returns its version.

  Args:
    path: the object.
    data: its content.
    version: None writes unconditionally; '' only if there is no such object, and a version only if it still has that.
    seconds: limit for all tries of a request; None waits for gcsfs to give up.

  Raises:
    Changed: the condition does not hold.
    OSError: writing failed; the old object is kept, unless only the answer was lost.
  """
  boundary = secrets.token_hex(16)
  described = json.dumps({'name': _key(path)}).encode()
  parts = [(b'application/json', described), (b'application/octet-stream', data)]
  body = b''.join(
    b'--%b\r\nContent-Type: %b\r\n\r\n%b\r\n' % (boundary.encode(), kind, content) for kind, content in parts
  )
  condition = {} if version is None else {'ifGenerationMatch': version or '0'}
  files = _filesystem()
  with _explained(path):
    try:
      written = files.call(
        'POST',
        files.base.replace('/storage/v1/', '/upload/storage/v1/') + 'b/{}/o',
        path.bucket,
        uploadType='multipart',
        headers={'Content-Type': f'multipart/related; boundary="{boundary}"'},
        data=body + b'--%b--' % boundary.encode(),
        json_out=True,
        timeout=seconds,
        **condition,
      )
      return str(written['generation'])
    except FileExistsError:  # HTTP 412
      # Perhaps by our own request, repeated after its answer was lost.
      with contextlib.suppress(FileNotFoundError):
        there, its_version = read_version(path, seconds)
        if there == data:
          return its_version
      raise Changed(str(path)) from None


def upload(files: dict[BucketPath, Path], progress: Any = None) -> None:
  """Uploads local files, several at a time. `progress`, a bar, advances by bytes. Raises OSError."""

  def one(target: BucketPath, file: Path) -> None:
    with _explained(target):
      for left in reversed(range(_TRIES)):
        try:
          _filesystem().put_file(str(file), str(target), consistency='md5')
          break
        except Exception:
          if not left:
            raise
    if progress is not None:
      progress.update(file.stat().st_size)

  _each(lambda item: one(*item), files.items())


def download(files: dict[BucketPath, Path], progress: Any = None) -> None:
  """Downloads objects to local files, several at a time. Raises OSError; leaves no partial file."""

  def one(source: BucketPath, file: Path) -> None:
    unfinished = file.with_name(f'.{secrets.token_hex(16)}')
    try:
      with _explained(source):
        _filesystem().get_file(str(source), str(unfinished))
      os.replace(unfinished, file)
    finally:
      unfinished.unlink(missing_ok=True)
    if progress is not None:
      progress.update(file.stat().st_size)

  _each(lambda item: one(*item), files.items())


def remove(paths: Iterable[BucketPath]) -> None:
  """Removes objects; those that are missing are ignored. Raises OSError."""

  def one(path: BucketPath) -> None:
    with _explained(path), contextlib.suppress(FileNotFoundError):
      _filesystem().call('DELETE', 'b/{}/o/{}', path.bucket, _key(path))

  _each(one, paths)


def remove_tree(folder: BucketPath) -> None:
  """Removes all objects below a folder. Raises OSError."""
  remove([folder / name for name in entries(folder)])


@functools.cache
def _filesystem() -> Any:
  # Otherwise gcsfs asks another API for the bucket's type, which emulators lack and few roles may use.
  os.environ.setdefault('GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT', 'false')
  # TensorStore would wait for two minutes; gcsfs, see below, forever.
  os.environ.setdefault('TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS', str(_IDLE))
  try:
    import aiohttp
    import fsspec.config
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise UserError(
      f"gs:// needs the extra '{EXTRA}', which is not installed: pip install 'ditsam_jax[{EXTRA}]'"
    ) from error
  # Orbax' instances get these defaults, too.
  defaults = fsspec.config.conf.setdefault('gcs', {})
  # gcsfs caches listings, and does not see what TensorStore or another host wrote.
  defaults.setdefault('use_listings_cache', False)
  # Whole transfers have no limit, because large ones take long.
  defaults.setdefault('requests_timeout', aiohttp.ClientTimeout(sock_connect=_IDLE, sock_read=_IDLE))
  return fsspec.filesystem('gcs', use_listings_cache=False)


def _children(folder: BucketPath) -> list[str]:
  """Names of the objects and folders directly in a folder."""
  start = len(_key(folder, is_folder=True))
  return sorted({item['name'][start:].strip('/') for item in _listed(folder, delimiter='/')} - {''})


def _listed(folder: BucketPath, most: int | None = None, delimiter: str = '') -> list[dict[str, Any]]:
  """The objects below a folder, at most `most`; with a delimiter, those directly in it and the names of folders."""
  found, page = [], None
  with _explained(folder):
    while True:
      given = ('maxResults', most), ('pageToken', page), ('delimiter', delimiter)
      more = {name: value for name, value in given if value}
      prefix = _key(folder, is_folder=True)
      try:
        answer = _filesystem().call('GET', 'b/{}/o', folder.bucket, prefix=prefix, json_out=True, **more)
      except FileNotFoundError:
        reason = f'there is no bucket {printable(folder.bucket)}; check its name, or create it'
        raise BucketError(errno.ENOENT, reason, str(folder)) from None
      found += answer.get('items', []) + [{'name': name} for name in answer.get('prefixes', [])]
      page = answer.get('nextPageToken')
      if not page or most:
        return sorted(found, key=lambda item: item['name'])


def _described(path: BucketPath) -> dict[str, Any] | None:
  with _explained(path):
    try:
      return _filesystem().call('GET', 'b/{}/o/{}', path.bucket, _key(path), json_out=True)
    except FileNotFoundError:
      return None


def _time(item: dict[str, Any]) -> datetime.datetime:
  return datetime.datetime.fromisoformat(item['updated'])


def _entry(item: dict[str, Any]) -> Entry:
  return Entry(int(item.get('size', 0)), f'crc32c:{item.get("crc32c", "")}', str(item.get('generation', '')))


def _key(path: BucketPath, is_folder: bool = False) -> str:
  """An object's name, or the common start of the names in a folder."""
  name = '/'.join(path.parts[2:])
  return f'{name}/' if is_folder and name else name


def _each(function: Any, items: Iterable[Any]) -> None:
  """Calls a function for all items, several at a time; raises the first exception when all have ended."""
  items = list(items)
  if len(items) == 1:
    function(items[0])
  elif items:
    with ThreadPoolExecutor(min(_AT_ONCE, len(items))) as pool:
      for result in [pool.submit(function, item) for item in items]:
        result.result()


@contextlib.contextmanager
def _explained(path: BucketPath) -> Iterator[None]:
  """Turns the exceptions of gcsfs, aiohttp and google-auth into OSError with one line that says what to do."""
  try:
    yield
  except (UserError, Changed, BucketError):
    raise
  except FileNotFoundError as error:
    raise FileNotFoundError(errno.ENOENT, 'no such object', str(path)) from error
  except Exception as error:
    raise BucketError(errno.EIO, _reason(error, path.bucket), str(path)) from error


def _reason(error: Exception, bucket: str) -> str:
  text = ' '.join(str(error).split())
  code = getattr(error, 'code', None)
  if str(code) == '401' or type(error).__module__.startswith('google.auth'):
    return (
      'there are no valid credentials; run `gcloud auth application-default login`, or set '
      'GOOGLE_APPLICATION_CREDENTIALS to a key file'
    )
  if str(code) == '403' or text.startswith('Forbidden'):
    return (
      f"these credentials may not do that; give the account the role 'Storage Object User' on the bucket "
      f'{printable(bucket)}'
    )
  if str(code) == '400' and 'bucket name' in text.lower():
    return f'{printable(bucket)!r} is not a valid bucket name'
  if isinstance(error, TimeoutError):
    return 'the store did not answer in time'
  return printable(f'{type(error).__name__}: {text}' if text else type(error).__name__, 200)
