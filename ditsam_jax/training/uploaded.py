"""Logs in a bucket, whose objects cannot grow: records are kept in memory, and written as a whole from time to time."""

import contextlib
import threading
from collections.abc import Callable

from ditsam_jax.storage import bucket
from ditsam_jax.storage.bucket import BucketPath

_SECONDS = 30.0  # between uploads, beside those that `flush` asks for
_PART = 2**22  # bytes; a larger file that may have parts goes on in another object after its upload


class Uploaded:
  """The interface of logging._Appended for an object in a bucket.

  A failed upload loses no records: they stay in memory until one succeeds.

  Args:
    path: the object; later parts have its name with a number.
    parts: whether it may be split into parts, each of which starts with the first record.
  """

  def __init__(self, path: BucketPath, *, parts: bool = False):
    self._path, self._content, self._parts = path, bytearray(), parts
    self._first, self._part = b'', 1
    self._change: Callable[[bytes], bytes] | None = None  # of an object that has not been read yet
    self._dirty, self._failure = False, None
    self._changing, self._uploading = threading.Lock(), threading.Lock()
    self._closed = threading.Event()
    threading.Thread(target=self._upload_at_times, daemon=True).start()

  def replace_by(self, change: Callable[[bytes], bytes]) -> None:
    """Starts with what `change` returns for the object, if there is one. Retried at uploads if it raises OSError."""
    self._change = change
    with self._uploading:
      self._read()

  def add(self, record: bytes) -> None:
    """Adds a record. Raises OSError if the last upload failed; the record is added nevertheless."""
    with self._changing:
      self._first = self._first or record
      self._content += record
      self._dirty = True
    failure, self._failure = self._failure, None
    if failure:
      raise failure

  def flush(self) -> None:
    """Uploads all records. Raises OSError."""
    with self._uploading:
      self._read()
      with self._changing:
        content, dirty, self._dirty = bytes(self._content), self._dirty, False
      if not dirty:
        return
      path = self._path if self._part == 1 else self._path.with_name(f'{self._path.name}.{self._part}')
      try:
        bucket.write(path, content)
      except OSError:
        self._dirty = True
        raise
      if self._parts and len(content) > _PART:
        with self._changing:
          self._part += 1
          self._content = bytearray(self._first) + self._content[len(content) :]

  def close(self) -> None:
    """Uploads all records, and ends the background uploads. Raises OSError."""
    self._closed.set()
    self.flush()

  def _read(self) -> None:
    """Reads the object that is to be changed, which an upload would replace."""
    if self._change is None:
      return
    with contextlib.suppress(FileNotFoundError):
      before = self._change(bucket.read(self._path))
      with self._changing:
        self._content[:0], self._dirty = before, True
    self._change = None

  def _upload_at_times(self) -> None:
    while not self._closed.wait(_SECONDS):
      try:
        self.flush()
      except OSError as error:
        self._failure = error
