"""Resolves a name, a folder or an address on the Hub to the folder that holds model.json."""

import os
from pathlib import Path

from ditsam_jax.errors import UserError
from ditsam_jax.storage import bucket_models, folders, hub
from ditsam_jax.storage.bucket import BucketPath
from ditsam_jax.storage.paths import any_path, anywhere
from ditsam_jax.terminal import printable

SHIPPED = Path(__file__).parents[1] / 'pretrained'


def shipped_names() -> list[str]:
  """Returns the names of the shipped models."""
  return sorted(path.parent.name for path in SHIPPED.glob('*/model.json'))


def is_shipped(name_or_dir: str | os.PathLike) -> bool:
  """Whether this is the name of a shipped model."""
  return resolve(name_or_dir).parent == SHIPPED


def model(given: str) -> str:
  """Returns text that may name a model, with `~` expanded: the `type` of --checkpoint. Raises UserError for others."""
  return hub.address(given) if hub.is_address(given) else anywhere(given)


def resolve(name_or_dir: str | os.PathLike) -> Path:
  """Returns the model folder for a shipped model's name, a model folder, a training workdir or hf://OWNER/NAME.

  A model on the Hub is downloaded, see `hub.model_folder`.

  A model in a bucket is copied, see `bucket_models`.

  Raises:
    UserError: the model does not exist, or cannot be downloaded.
  """
  if hub.is_address(name_or_dir):
    return hub.model_folder(str(name_or_dir))
  given = anywhere(str(name_or_dir))
  name = f"'{printable(given)}'"
  try:
    path = any_path(given)
    for candidate in (path, path / 'model'):
      if isinstance(candidate, Path) and not os.path.lexists(candidate):
        folders.recover(candidate)  # a replacement may have been killed halfway
      if (candidate / 'model.json').exists():
        return bucket_models.copied(candidate) if isinstance(candidate, BucketPath) else candidate
    exists, is_run = path.exists(), (path / 'checkpoints').is_dir()
  except OSError as error:
    raise UserError(f'checkpoint {name} cannot be read: {error.strerror or error}') from error
  if given in shipped_names():
    return SHIPPED / given
  shipped = ', '.join(shipped_names())
  if not exists:
    raise UserError(
      f"checkpoint {name} does not exist; give a model's folder, a training run's workdir, hf://OWNER/NAME, or a "
      f'shipped model ({shipped})'
    )
  if is_run:
    raise UserError(
      f'{name} is a training run that has not written its model yet; let it finish, or stop it with '
      f'Ctrl-C to write the model'
    )
  raise UserError(
    f"{name} is not a ditsam_jax model: it has no model.json; give a model's folder, a training run's "
    f'workdir, or a shipped model ({shipped})'
  )
