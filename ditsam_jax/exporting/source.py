"""The model that is exported."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.exporting.request import Request
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import is_position
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.arrays import unusable
from ditsam_jax.storage.building import build_model, check_weights
from ditsam_jax.storage.description import read_config, read_description, vocabulary_file
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.terminal import listed, printable
from ditsam_jax.tokenization import Tokenizer


class Source(NamedTuple):
  """A saved model.

  Attributes:
    name: what the user called it.
    config: the model's config.
    weights: f32, by dotted path, rounded to the type they will be stored in.
    pieces: the word pieces of its vocabulary, in the order of their ids; None for a plain SAM.
    description: its model.json, see `storage.description`.
  """

  name: str
  config: DitSamConfig
  weights: dict[str, np.ndarray]
  pieces: list[str] | None
  description: dict

  def model(self) -> DitSam:
    """The model with these weights, in f32 and eval mode, on the CPU: accelerators round products to less than f32."""
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      return build_model(self.config, self.weights, self.name)

  def tokenizer(self) -> Tokenizer | None:
    """Its tokenizer, or None for a plain SAM."""
    return None if self.pieces is None else Tokenizer(vocabulary_file(self.name), self.config.max_text_tokens)


def read(request: Request) -> Source:
  """Reads the model of a request, its weights rounded to `request.dtype`.

  Raises:
    UserError: the model is missing or damaged, or a weight is too large for the type.
  """
  name, dtype = request.checkpoint, jnp.dtype(request.dtype)
  config, description = read_config(name), read_description(name)
  pieces = None if config.text_encoder is None else list(read_vocabulary(vocabulary_file(name)))
  weights = {path: array.astype(np.float32) for path, array in saved_model.read_weights(name).items()}
  check_weights(config, weights, name)
  with np.errstate(over='ignore'):  # checked below
    rounded = {
      path: array if is_position(path) else array.astype(dtype).astype(np.float32) for path, array in weights.items()
    }
  if problems := unusable(rounded.items()):
    raise UserError(f"'{printable(name)}' cannot be stored as {dtype.name}: {listed(problems)}; use --dtype=float32")
  return Source(name, config, rounded, pieces, description)
