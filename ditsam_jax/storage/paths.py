"""Paths from users: local ones, and those in buckets where a command can use them. Other URLs are refused, instead of
creating a folder named `gs:`. `~` becomes the home folder, because shells leave it in `--output=~/x`.
"""

import argparse
import os
import re
from pathlib import Path

from ditsam_jax.errors import UserError
from ditsam_jax.storage.bucket import SCHEME, AnyPath, BucketPath
from ditsam_jax.terminal import printable

# A single letter and a colon is a Windows drive. One slash is enough, because `Path` turns gs:// into gs:/.
_SCHEME = re.compile(r'([A-Za-z][A-Za-z0-9+.-]+):/')
_BUCKET = re.compile(r'gs://[a-z0-9][a-z0-9._-]{1,220}[a-z0-9](/|$)')
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
    where = ' here' if name == 'gs' else ''
    return f'{name}:// is not supported{where}; {_INSTEAD.get(name, "give a local path")}'
  return None


def problem_anywhere(given: str) -> str | None:
  """Returns why a text is neither a local path nor one in a bucket, or None if it is."""
  if not given.startswith(SCHEME) or '\0' in given:
    scheme = _SCHEME.match(given)
    if scheme and scheme.group(1).lower() == 'gs':
      return 'expected gs://BUCKET/PATH'
    return problem(given)
  if not _BUCKET.match(given):
    return 'expected gs://BUCKET/PATH, with 3 to 222 lower-case letters, digits, dashes, dots or underscores for BUCKET'
  if any(part in ('.', '..') for part in given.split('/')) or re.search(r'[\r\n#?*\[\]]', given):
    return "expected gs://BUCKET/PATH without '.' or '..' as parts, line breaks or any of #?*[]"
  return None


class EmptyPath(UserError, argparse.ArgumentTypeError):
  """An empty path; argparse puts the option's name before its message."""


def _check_given(given: str) -> None:
  """Raises EmptyPath for '', often a variable that the shell does not know: `Path` makes it the current folder."""
  if not given:
    raise EmptyPath("the path is empty; give one, such as './x', or omit the option")


def local(given: str) -> str:
  """Returns a local path, with `~` expanded; the `type` of path options. Raises UserError if it is none."""
  _check_given(given)
  if reason := problem(given):
    raise UserError(f'{given!r}: {reason}')
  return os.path.expanduser(given)


def local_path(given: str) -> Path:
  """Like `local`, but returns a `Path`."""
  return Path(local(given))


def anywhere(given: str) -> str:
  """Returns a local path, with `~` expanded, or one in a bucket; a `type` of options. Raises UserError for others."""
  _check_given(given)
  if reason := problem_anywhere(given):
    raise UserError(f"'{printable(given)}': {reason}")
  return os.path.expanduser(given)


def any_path(given: str | os.PathLike) -> AnyPath:
  """Like `anywhere`, but returns a `Path` or a `BucketPath`."""
  if isinstance(given, (Path, BucketPath)):
    given = os.fspath(given)
  text = anywhere(os.fspath(given))
  return BucketPath(text) if text.startswith(SCHEME) else Path(text)


def cache_folder() -> Path:
  """Returns the folder of this library's caches. Raises UserError if there is no home folder."""
  try:
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'ditsam_jax'
  except RuntimeError as error:
    raise UserError('this user has no home folder; set XDG_CACHE_HOME to a folder for caches') from error
