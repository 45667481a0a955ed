"""Local paths from users. Buckets and other URLs are refused, instead of creating a folder `gs:`."""

import re
from pathlib import Path

from ditsam_jax.errors import UserError

# One letter and a colon is a Windows drive; `Path` has made gs:// to gs:/ where it came first.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')
_INSTEAD = {
  'gs': 'mount the bucket (gcsfuse) and give the path below its mount point',
  's3': 'mount the bucket (s3fs) and give the path below its mount point',
  'file': 'give the path alone, without file://',
}


def problem(given: str) -> str | None:
  """What keeps a text from being a path of this machine, as an English clause with a remedy, or None."""
  if '\0' in given:
    return 'it contains a NUL character; give a path without one'
  scheme = _SCHEME.match(given)
  if scheme:
    name = scheme.group(1).lower()
    return f'{name}:// is not supported; {_INSTEAD.get(name, "give a local path")}'
  return None


def local(given: str) -> str:
  """The same text, where it can be a path of this machine; the `type` of commands' options. Raises UserError."""
  if reason := problem(given):
    raise UserError(f'{given!r}: {reason}')
  return given


def local_path(given: str) -> Path:
  """As `local`, as a `Path`."""
  return Path(local(given))
