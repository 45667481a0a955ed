"""PyTorch weights in local files, or on the Hugging Face Hub (hf://OWNER/NAME[@REVISION][/PATH])."""

from pathlib import Path

from ditsam_jax.convert import words
from ditsam_jax.storage import hub
from ditsam_jax.storage.paths import local

_SETTINGS = ('config.json', *words.FILES, 'tokenizer_config.json')
_SAFETENSORS = ('model.safetensors', 'model.safetensors.index.json', 'model-*.safetensors')
_PICKLES = ('pytorch_model.bin', 'pytorch_model.bin.index.json', 'pytorch_model-*.bin')


def place(given: str) -> str:
  """Returns a local path, with `~` expanded, or an address on the Hub. Raises UserError if it is neither."""
  return hub.address(given) if hub.is_address(given) else local(given)


def local_weights(given: str) -> Path:
  """Returns the local file or folder. From the Hub, a folder's safetensors are downloaded, or else its pickles.

  Raises:
    UserError: nothing is there, or it cannot be downloaded.
  """
  if not hub.is_address(given):
    return Path(given)
  return hub.weights(given, (_SAFETENSORS, _PICKLES), _SETTINGS)
