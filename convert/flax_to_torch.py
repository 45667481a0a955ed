"""Writes a model as PyTorch weights: python convert/flax_to_torch.py --input=DIR --output=FILE

Models with a text encoder get the DIT release's layout, plain SAMs Meta's. Weights that came from PyTorch go back bit for
bit, in the type they had; optimiser states do not travel.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # run as a script: `convert` is a part of the repository beside it
  sys.path[0] = str(Path(__file__).resolve().parents[1])
  from ditsam_jax import command_line

  command_line.begin()

from convert import names
from ditsam_jax import command_line
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.files import written_whole

try:
  import torch

  from convert.sources import from_numpy, release_tensors
except ModuleNotFoundError as error:
  command_line.fail(
    f"{error.name} is not installed, and PyTorch files cannot be written without: pip install --editable '.[convert]'"
  )

QUERIES = 4  # rows of the release's unused query_embeddings


def main(arguments: list[str] | None = None) -> int:
  """The command."""
  parser = argparse.ArgumentParser(
    prog='python convert/flax_to_torch.py', description=__doc__.split('\n')[0], allow_abbrev=False
  )
  parser.add_argument('--input', required=True, help="a model's folder, a training run's workdir or a shipped model")
  parser.add_argument('--output', required=True, type=Path, help='the .pth file; an earlier one is replaced')
  options = parser.parse_args(arguments)
  config = saved_model.read_config(options.input)
  check_output(options.output, saved_model.resolve(options.input))
  origin = (saved_model.read_description(options.input).get('notes') or {}).get('source', {})
  weights = saved_model.read_weights(options.input)
  saved_model.check_weights(config, weights, options.input)
  tensors = release_tensors(weights)
  kept = {name: from_numpy(array) for name, array in saved_model.read_leftovers(options.input).items()}
  if config.text_encoder is None:
    content = {names.meta_name(name): tensor for name, tensor in (tensors | kept).items()}
    invented = []
  else:
    zeros = {name: tensor for name, tensor in unused_tensors(config).items() if name not in kept}
    invented = list(zeros)
    tensors |= kept | zeros
    prefix = origin.get('prefix', '')
    content = {
      'epoch': origin.get('epoch', 0),
      'lr': origin.get('lr', 0.0),
      'optimizer': {},
      'scheduler': {},
      'state_dict': {prefix + name: tensor for name, tensor in tensors.items()},
    }
  write(options.output, content)
  layout = "Meta's" if config.text_encoder is None else "the DIT release's"
  print(f'{options.output}: {len(tensors)} tensors in {layout} layout, {options.output.stat().st_size / 1e6:,.1f} MB')
  if invented:
    print(f'zeros, for the release wants them and uses them for nothing: {", ".join(invented)}')
  return 0


def unused_tensors(config: DitSamConfig) -> dict[str, torch.Tensor]:
  """What the release's modules carry along without using, as zeros, so that its strict loading succeeds."""
  width = config.text_encoder.width
  shapes = {'lang_encoder.bert.pooler.dense.weight': (width, width), 'lang_encoder.bert.pooler.dense.bias': (width,)}
  if config.fusion != 'none':
    shapes |= {
      'query_embeddings': (1, QUERIES, width),
      'self_attention.in_proj_weight': (3 * width, width),
      'self_attention.in_proj_bias': (3 * width,),
      'self_attention.out_proj.weight': (width, width),
      'self_attention.out_proj.bias': (width,),
    }
  return {name: torch.zeros(shape) for name, shape in shapes.items()}


def check_output(path: Path, model: Path) -> None:
  """Raises UserError unless a file may be put there."""
  if not path.name or path.exists() and not path.is_file():
    raise UserError(f'cannot write {path}: it is no file; choose another output')
  if model.resolve() in path.resolve().parents:
    raise UserError(f"cannot write {path}: it lies inside the model's own folder; choose another output")


def write(path: Path, content: dict) -> None:
  """torch.save, whole or not at all. Raises UserError if the file cannot be written."""
  path = path.resolve()  # a link stays one, and its target is replaced
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as unfinished, unfinished.open('wb') as file:
      torch.save(content, file)
  except (OSError, RuntimeError) as error:  # torch.save reports a full disk as RuntimeError
    raise UserError(
      f'cannot write {path}: {getattr(error, "strerror", None) or error}; choose another output'
    ) from error


if __name__ == '__main__':
  command_line.run(main)
