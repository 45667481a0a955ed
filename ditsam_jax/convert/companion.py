"""FILE.pth.json next to FILE.pth: settings that tensors lack, written by flax_to_torch and read by torch_to_flax.

It contains the SHA-256 of its tensors, so a file that was left next to other weights is detected.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable, say
from ditsam_jax.training.fingerprint import weights_sha256

FORMAT = 'ditsam_jax model beside PyTorch weights, version 1'
MOST_BYTES = 2**26


class Companion(NamedTuple):
  """The content of a companion file."""

  path: Path
  config: DitSamConfig
  vocabulary: list[str] | None
  about: dict[str, Any]  # data, notes, fresh and assumed, see saved_model.write
  sha256: str  # fingerprint of the tensors


def place(weights: Path) -> Path:
  """The path of the companion of a weights file."""
  return weights.with_name(f'{weights.name}.json')


def fingerprint(tensors: dict[str, np.ndarray]) -> str:
  """SHA-256 of the names (the release's), types, shapes and bytes of tensors."""
  return weights_sha256(tensors=tensors)


def text(
  config: DitSamConfig, tensors: dict[str, np.ndarray], vocabulary: list[str] | None, about: dict[str, Any]
) -> str:
  """Formats a companion as JSON."""
  content = {'format': FORMAT, 'tensors_sha256': fingerprint(tensors), 'model': config.to_dict()}
  return json.dumps(content | about | {'vocabulary': vocabulary}, indent=1) + '\n'


def is_one(path: Path) -> bool:
  """Whether a file is a companion of any model."""
  try:
    content = read_json(path, most_bytes=MOST_BYTES)
  except UserError:
    return False
  return isinstance(content, dict) and content.get('format') == FORMAT


def find(weights: Path) -> Companion | None:
  """Reads the companion of a weights file; None if there is none.

  Raises:
    UserError: the companion is damaged.
  """
  path = place(weights)
  if weights.is_dir() or not path.exists():
    return None
  content = read_json(path, most_bytes=MOST_BYTES)
  if not isinstance(content, dict) or 'format' not in content or 'tensors_sha256' not in content:
    say(f'{printable(path)} was not written by flax_to_torch.py, and is ignored')
    return None
  return _parsed(path, content)


def read(path: Path) -> Companion:
  """Reads a companion from any path. Raises UserError if the file is not one."""
  return _parsed(path, read_json(path, most_bytes=MOST_BYTES))


def check_belongs(companion: Companion, weights: Path, tensors: dict[str, np.ndarray]) -> None:
  """Raises UserError unless a companion was written for these tensors."""
  if fingerprint(tensors) != companion.sha256:
    raise UserError(
      f'{printable(companion.path)} was written for other weights than those in {printable(weights)}; '
      f'remove it, or pass --config={printable(companion.path)} if it still applies (after training in PyTorch, say)'
    )


def _parsed(path: Path, content: Any) -> Companion:
  def refuse(reason: str) -> NoReturn:
    raise UserError(f"{printable(path)} does not describe a model ({reason}); expected flax_to_torch.py's JSON")

  if not isinstance(content, dict) or content.get('format') != FORMAT:
    refuse(f'format {printable(content.get("format")) if isinstance(content, dict) else "missing"}')
  vocabulary, sha256 = content.get('vocabulary'), content.get('tensors_sha256')
  if vocabulary is not None and not (isinstance(vocabulary, list) and all(type(word) is str for word in vocabulary)):
    refuse('vocabulary is not a list of words')
  about = {name: content.get(name, kind()) for name, kind in ABOUT.items()}
  for name, kind in ABOUT.items():
    if not isinstance(about[name], kind):
      refuse(f'{name} is not a {kind.__name__}')
  try:
    config = DitSamConfig.from_dict(content.get('model'))
  except (ValueError, TypeError, KeyError, OverflowError, UserError) as error:
    raise UserError(f'{printable(path)}: {printable(error, 500)}') from error
  return Companion(path, config, vocabulary, about, str(sha256))


ABOUT = {'data': dict, 'notes': dict, 'fresh': list, 'assumed': list}
