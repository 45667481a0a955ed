"""Models in buckets: a new version lies beside the old one until model.json, written last, names it.

  model/model.json                'folder': 'v-1f3a9c02'
  model/v-1f3a9c02/vocab.txt, weights/, leftovers/

They are read from a verified local copy.
"""

import json
import re
import secrets
from pathlib import Path

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket, copies
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.terminal import printable

_NAME = 'model.json'
_VERSION = re.compile(r'v-[0-9a-f]{8}')
_copied: dict[BucketPath, tuple[str, Path]] = {}  # version of model.json, and the copy of the model


def new_version() -> str:
  """Returns the name of a new version's folder."""
  return f'v-{secrets.token_hex(4)}'


def copied(folder: BucketPath) -> Path:
  """Returns a local copy of a model in a bucket. Raises OSError, FileNotFoundError if there is none."""
  for _ in range(3):  # it may be replaced while it is being copied
    content, version = bucket.read_version(folder / _NAME)
    known, place = _copied.get(folder, ('', Path()))
    if known == version and place.is_dir():
      return place
    names = _names(content)
    objects = {name: entry for name, entry in bucket.entries(folder).items() if names is None or name in names}
    if objects.get(_NAME, bucket.Entry(0, '', '')).version != version:
      continue
    try:
      place = copies.copy_with_progress(folder, objects)
    except FileNotFoundError:  # the old version has just been removed
      continue
    _copied[folder] = version, place
    return place
  raise bucket.BucketError(5, 'is being replaced over and over; try again', str(folder))


def publish(written: Path, folder: BucketPath, version: str) -> None:
  """Uploads a model that was written to a local folder, as a version; then removes older versions. Raises OSError."""
  files = {path.relative_to(written).as_posix(): path for path in written.rglob('*') if path.is_file()}
  description = files.pop(_NAME)
  size = sum(path.stat().st_size for path in files.values())
  with copies.BytesBar(size, f'uploading {printable(folder.name)}') as bar:
    bucket.upload({folder / version / name: path for name, path in files.items()}, bar)
  bucket.write(folder / _NAME, description.read_bytes())
  parts = {name: name.partition('/')[0] for name in bucket.entries(folder)}
  bucket.remove([folder / name for name, part in parts.items() if _VERSION.fullmatch(part) and part != version])


def check_target(folder: BucketPath) -> None:
  """Raises UserError unless the folder is free or contains a model, or part of one that was never completed."""
  names = bucket.entries(folder)
  if _NAME in names or all(_VERSION.match(name) for name in names):
    return
  raise UserError(
    f'the model cannot be written to {printable(folder)}: the folder holds something else; choose another place'
  )


def _names(description: bytes) -> set[str] | None:
  """The objects of a model according to its model.json; None if that does not list them."""
  try:
    content = json.loads(description)
    version, files = content.get('folder', ''), content['files']
    return {_NAME, *(f'{version}/{name}' if version else name for name in [*files, 'tokenizer.json'])}
  except (ValueError, TypeError, KeyError, AttributeError):
    return None
