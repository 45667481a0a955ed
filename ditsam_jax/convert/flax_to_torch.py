"""Writes a model as PyTorch weights: python convert/flax_to_torch.py --input=DIR --output=FILE

Models with a text encoder are written in the DIT release's layout, plain SAMs in Meta's. Weights that came from PyTorch
are written bit-exactly, in their original type; optimiser states are not converted. FILE.json next to it holds what the
tensors lack (heads, fusion, sizes, thresholds, vocabulary), so torch_to_flax.py needs no flags.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from ditsam_jax import command_line
from ditsam_jax.convert import companion as companions
from ditsam_jax.convert import names
from ditsam_jax.convert.sources import from_numpy, release_tensors, to_numpy
from ditsam_jax.convert.words import FILES
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.options import Parser
from ditsam_jax.storage import places, saved_model
from ditsam_jax.storage.building import check_weights
from ditsam_jax.storage.description import contents, read_config, read_description, vocabulary_file
from ditsam_jax.storage.files import written_whole
from ditsam_jax.storage.paths import local_path
from ditsam_jax.storage.places import resolve
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.terminal import printable

QUERIES = 4  # rows of the unused query_embeddings in the release


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  parser = Parser(prog='python convert/flax_to_torch.py', description=(__doc__ or '').split('\n')[0])
  parser.add_argument(
    '--input',
    required=True,
    type=places.model,
    help="a model's folder, a training run's workdir, hf://OWNER/NAME or a shipped model",
  )
  parser.add_argument(
    '--output', required=True, type=local_path, help='the .pth file to write; an existing one is replaced'
  )
  options = parser.parse_args(arguments)
  config = read_config(options.input)
  check_output(options.output, resolve(options.input))
  description = read_description(options.input)
  origin = _origin(description)
  weights = saved_model.read_weights(options.input)
  check_weights(config, weights, options.input)
  tensors = release_tensors(weights)
  kept = {name: from_numpy(array) for name, array in saved_model.read_leftovers(options.input).items()}
  if config.text_encoder is None:
    content = {names.meta_name(name): tensor for name, tensor in (tensors | kept).items()}
    added = []
  else:
    zeros = {name: tensor for name, tensor in unused_tensors(config).items() if name not in kept}
    added = list(zeros)
    tensors |= kept | zeros
    prefix = origin.get('prefix', '')
    content = {
      'epoch': origin.get('epoch', 0),
      'lr': origin.get('lr', 0.0),
      'optimizer': {},
      'scheduler': {},
      'state_dict': {prefix + name: tensor for name, tensor in tensors.items()},
    }
  about = {name: description[name] for name in companions.ABOUT}
  words = _vocabulary(options.input)
  arrays = {name: to_numpy(tensor) for name, tensor in release_tensors(weights).items()}
  write(options.output, content, companions.text(config, arrays, words, about))
  layout = "Meta's" if config.text_encoder is None else "the DIT release's"
  print(
    f'{printable(options.output)}: {len(tensors)} tensors in {layout} layout, '
    f'{options.output.stat().st_size / 1e6:,.1f} MB; '
    f'{printable(companions.place(options.output).name)} holds the settings'
  )
  if added:
    print(f'filled with zeros, because the release expects them but never uses them: {", ".join(added)}')
  return 0


def _origin(description: dict) -> dict:
  """Returns the validated values that the conversion from PyTorch recorded about its source."""
  source = description['notes'].get('source')
  source = source if isinstance(source, dict) else {}
  kinds = {'prefix': str, 'epoch': (int, float), 'lr': (int, float)}
  return {name: source[name] for name, kind in kinds.items() if isinstance(source.get(name), kind)}


def _vocabulary(name_or_dir: str) -> list[str] | None:
  """Returns the model's word pieces; None if it takes no text, or was converted without a vocabulary."""
  folder = contents(name_or_dir)
  if not any((folder / name).exists() for name in FILES):
    return None
  return list(read_vocabulary(vocabulary_file(name_or_dir)))


def unused_tensors(config: DitSamConfig) -> dict[str, torch.Tensor]:
  """Returns zeros for the tensors that the release's modules contain but never use, so that strict loading succeeds."""
  assert config.text_encoder is not None  # all models of the release have one
  width = config.text_encoder.width
  shapes = {'lang_encoder.bert.pooler.dense.weight': (width, width), 'lang_encoder.bert.pooler.dense.bias': (width,)}
  if config.encodes_text_with_image:
    shapes |= {
      'query_embeddings': (1, QUERIES, width),
      'self_attention.in_proj_weight': (3 * width, width),
      'self_attention.in_proj_bias': (3 * width,),
      'self_attention.out_proj.weight': (width, width),
      'self_attention.out_proj.bias': (width,),
    }
  return {name: torch.zeros(shape) for name, shape in shapes.items()}


def check_output(path: Path, model: Path) -> None:
  """Raises UserError unless the output file can be written there."""
  name, beside = printable(path), companions.place(path) if path.name else path
  try:
    if not path.name or path.exists() and not path.is_file():
      raise UserError(f'cannot write {name}: it is not a file; choose another output')
    if any(place.resolve().is_relative_to(model.resolve()) for place in (path, path.parent)):
      raise UserError(f"cannot write {name}: it lies inside the model's own folder; choose another output")
    if beside.exists() and not companions.is_one(beside):
      raise UserError(
        f'cannot write {printable(beside)}, which is also needed: something else is there; choose another output'
      )
  except (OSError, ValueError) as error:  # ValueError: an invalid file name
    raise UserError(f'cannot write {name}: {getattr(error, "strerror", None) or error}') from error


def write(path: Path, content: dict, beside: str) -> None:
  """Writes the .pth file and its companion atomically. Raises UserError if they cannot be written."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    target = path.resolve()  # keeps a symbolic link and replaces its target
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(companions.place(path)) as unfinished_text, written_whole(target) as unfinished:
      unfinished_text.write_text(beside, encoding='utf-8')
      with unfinished.open('wb') as file:
        torch.save(content, file)
  except (OSError, RuntimeError, ValueError) as error:  # torch.save wraps the system's error in a RuntimeError
    reason = next((one.strerror for one in _chain(error) if isinstance(one, OSError)), None) or str(error)
    raise UserError(f'cannot write {printable(path)}: {printable(reason)}; choose another output') from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
  """Yields an exception and its causes."""
  while error is not None:
    yield error
    error = error.__cause__ or error.__context__


if __name__ == '__main__':
  command_line.run(main, on_cpu=True)
