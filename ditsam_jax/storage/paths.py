"""Local paths from users. Buckets and other URLs are refused instead of creating a folder named `gs:`."""

import re
from pathlib import Path

from ditsam_jax.errors import UserError

# A single letter and a colon is a Windows drive. One slash is enough, because `Path` turns gs:// into gs:/.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')
_INSTEAD = {
  'gs': 'mount the bucket (gcsfuse) and give the path below its mount point',
  's3': 'mount the bucket (s3fs) and give the path below its mount point',
  'file': 'give the path without file://',
}


def problem(given: str) -> str | None:
  """Returns why a text is not a local path, with a remedy, or None if it is one."""
  if '\0' in given:
    return 'it contains a NUL character; give a path without one'
  scheme = _SCHEME.match(given)
  if scheme:
    name = scheme.group(1).lower()
    return f'{name}:// is not supported; {_INSTEAD.get(name, "give a local path")}'
  return None


def local(given: str) -> str:
  """Returns the text unchanged if it is a local path; the `type` of path options. Raises UserError otherwise."""
  if reason := problem(given):
    raise UserError(f'{given!r}: {reason}')
  return given


def local_path(given: str) -> Path:
  """Like `local`, but returns a `Path`."""
  return Path(local(given))
