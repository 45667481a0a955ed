"""Converts PyTorch weights: python convert/torch_to_flax.py --input=FILE_OR_DIR --output=DIR

Takes Meta's SAM, checkpoints of the DIT release, Hugging Face's SamModel, and any SAM together with a BERT
(--text-encoder), which is the starting point for training with text. The architecture is read off the tensors.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path

if not __package__:  # run as a script: `convert` is a part of the repository beside it
  sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax
import numpy as np
from flax import nnx

from convert import names
from convert.architecture import read_architecture
from ditsam_jax import command_line
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.terminal import say
from ditsam_jax.tokenization import read_vocabulary

try:
  from convert import sources
except ModuleNotFoundError as error:
  command_line.fail(
    f"{error.name} is not installed, and PyTorch files cannot be read without: pip install --editable '.[convert]'"
  )

TITLES = {'meta': "Meta's SAM", 'release': 'the DIT release', 'hugging_face': "Hugging Face's SamModel"}
FRESH = {'text_proj': 'a plain SAM has no text prompts', 'image_encoder.instruction': 'the fusion is new'}


def main(arguments: list[str] | None = None) -> int:
  """The command."""
  parser = argparse.ArgumentParser(
    prog='python convert/torch_to_flax.py', description=__doc__.split('\n')[0], allow_abbrev=False
  )
  parser.add_argument('--input', required=True, type=Path, help='a PyTorch file, or a folder as Hugging Face writes it')
  parser.add_argument('--output', required=True, type=Path, help='the folder to be; an earlier model there is replaced')
  parser.add_argument('--fusion', choices=FUSIONS, help='where the tensors cannot tell (layer_wise or e2e), or are new')
  parser.add_argument('--text-encoder', type=Path, metavar='FILE_OR_DIR', help='a BERT, to be joined with a plain SAM')
  parser.add_argument('--vocab', type=Path, metavar='FILE', help="the tokeniser's vocab.txt, to predict from sentences")
  parser.add_argument('--image-size', type=_positive, help="default: 512, the release's; for a plain SAM its own")
  parser.add_argument('--decoder-heads', type=_positive, help='of the mask decoder; default: 8')
  parser.add_argument('--text-heads', type=_positive, help='of BERT; default: width / 64')
  parser.add_argument('--verify', action='store_true', help='runs PyTorch beside it and compares, stage by stage')
  options = parser.parse_args(arguments)
  if options.verify:
    from convert import torch_peer

    torch_peer.check_installed()

  say(f'reading {options.input}')
  source, config = read(
    options.input,
    text_encoder=options.text_encoder,
    fusion=options.fusion,
    image_size=options.image_size,
    decoder_heads=options.decoder_heads,
    text_heads=options.text_heads,
  )
  vocabulary = find_vocabulary(config, options.vocab, [options.text_encoder, source.path])
  weights, fresh = fill(config, source)
  verified = torch_peer.compare(source.tensors, config, weights) if options.verify else ''
  say(f'writing {options.output}')
  notes = {'source': {'format': source.format, 'prefix': source.prefix, **source.extra}}
  saved_model.write(
    options.output,
    config,
    weights,
    vocabulary=vocabulary,
    notes=notes,
    leftovers={name: sources.to_numpy(tensor) for name, tensor in source.leftovers.items()},
  )
  print(describe(source, config, fresh, vocabulary, options.output))
  if verified:
    print(verified)
  return 0


def read(path: Path, *, text_encoder: Path | None = None, **flags) -> tuple['sources.Source', DitSamConfig]:
  """A checkpoint, with a BERT's tensors added if one is given, and the config that fits.

  Args:
    path: the SAM.
    text_encoder: a BERT to join it with.
    **flags: fusion, image_size, decoder_heads, text_heads of `read_architecture`.

  Raises:
    UserError: unreadable files, files of the wrong kind, tensors that do not tell an architecture.
  """
  source = sources.read(path)
  if source.format == 'bert':
    raise UserError(f'{path} is a BERT alone, half a model: give it as --text-encoder, and a SAM as --input')
  if text_encoder is not None:
    bert = sources.read(text_encoder)
    if bert.format != 'bert':
      raise UserError(f'--text-encoder={text_encoder} is no BERT but {TITLES[bert.format]}')
    if any(name.startswith('lang_encoder.') for name in source.tensors):
      raise UserError(f'{path} has a text encoder of its own; leave --text-encoder out')
    source = source._replace(
      tensors=source.tensors | bert.tensors,
      spelled=source.spelled | bert.spelled,
      leftovers=source.leftovers | bert.leftovers,
      problems=source.problems | bert.problems,
    )
  shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
  flags = head_counts(path, text_encoder) | {name: value for name, value in flags.items() if value is not None}
  try:
    return source, read_architecture(shapes, new_fusion=text_encoder is not None, **flags)
  except UserError:
    _list(source.problems.values())  # they may explain it
    raise


def head_counts(sam: Path, text_encoder: Path | None) -> dict[str, int]:
  """What Hugging Face's config.json beside the weights says of heads, which shapes do not tell: flags by name.

  Raises:
    UserError: a text encoder that computes something else than BERT does.
  """
  counts = {}
  decoder = _hugging_face_config(sam).get('mask_decoder_config')
  if isinstance(decoder, dict) and isinstance(decoder.get('num_attention_heads'), int):
    counts['decoder_heads'] = decoder['num_attention_heads']
  text = _hugging_face_config(text_encoder) if text_encoder is not None else {}
  if isinstance(text.get('num_attention_heads'), int):
    counts['text_heads'] = text['num_attention_heads']
  for field, expected in (('hidden_act', 'gelu'), ('layer_norm_eps', 1e-12), ('model_type', 'bert')):
    if text.get(field, expected) != expected:
      raise UserError(f"{text_encoder}: config.json says {field} {text[field]!r}; only BERT's {expected!r} is known")
  return counts


def _hugging_face_config(path: Path) -> dict:
  file = (path if path.is_dir() else path.parent) / 'config.json'
  try:
    content = json.loads(file.read_text())
  except (OSError, ValueError):
    return {}
  return content if isinstance(content, dict) else {}


def fill(config: DitSamConfig, source: 'sources.Source') -> tuple[dict[str, np.ndarray], list[str]]:
  """Our weights by dotted path, in the source's types and without copies, and the paths that are freshly initialised.

  Raises:
    UserError: tensors that are unknown, missing, of a wrong shape or used by nothing; all in one report.
  """
  model = nnx.eval_shape(lambda: DitSam(config, rngs=nnx.Rngs(0)))
  weights, fresh, problems, used = {}, [], list(source.problems.values()), set()
  may_be_fresh = source.format != 'release' and config.text_encoder is not None
  for path, variable in weights_of(model).items():
    entry = names.entry(path)
    expected = [part.shape for part in entry.save(np.broadcast_to(np.float32(0), variable.shape))]
    missing = [name for name in entry.names if name not in source.tensors]
    used |= set(entry.names)
    if missing and may_be_fresh and path.startswith(tuple(f'{part}.' for part in FRESH)):
      fresh.append(path)
      continue
    problems += [f'{_spelled(name, source)} is missing' for name in missing if name not in source.problems]
    problems += [
      f'{_spelled(name, source)} is {_shape(source, name)}, expected {shape}'
      for name, shape in zip(entry.names, expected)
      if name not in missing and _shape(source, name) != shape
    ]
    types = {str(source.tensors[name].dtype) for name in entry.names if name in source.tensors}
    if len(types) > 1:
      problems.append(f'{_spelled(entry.names[0], source)} and its like are of several types ({", ".join(types)})')
    if not problems:
      weights[path] = entry.load([sources.to_numpy(source.tensors[name]) for name in entry.names])
  problems += [
    f'{_spelled(name, source)} has no place in a model of these sizes' for name in source.tensors if name not in used
  ]
  _report(problems, source.path)
  return weights | _initial_values(config, fresh), fresh


def find_vocabulary(config: DitSamConfig, given: Path | None, places: list[Path | None]) -> Path | None:
  """The tokeniser's vocabulary: the given file, or one beside the weights; None where there is none.

  Raises:
    UserError: the given file is missing or no vocabulary, or has another number of words than the text encoder.
  """
  if config.text_encoder is None:
    if given is not None:
      raise UserError(f'--vocab={given}: a plain SAM takes no text; leave it out')
    return None
  beside = [(place if place.is_dir() else place.parent) / 'vocab.txt' for place in places if place is not None]
  file = given or next((candidate for candidate in beside if candidate.is_file()), None)
  if file is None:
    return None
  try:
    words = len(read_vocabulary(file))
  except UserError:
    if given is not None:
      raise
    words = 0
  if words != config.text_encoder.vocab_size:
    if given is None:
      say(f'{file} is of another model, and left alone')
      return None
    raise UserError(
      f'vocabulary {file} has {words} words, the text encoder {config.text_encoder.vocab_size}; give the '
      f'vocab.txt it was trained with'
    )
  return file


def describe(
  source: 'sources.Source', config: DitSamConfig, fresh: list[str], vocabulary: Path | None, output: Path
) -> str:
  """What was converted, for people."""
  encoder, decoder, text = config.image_encoder, config.mask_decoder, config.text_encoder
  blocks = ', '.join(map(str, encoder.global_blocks)) or 'none'
  lines = [
    f'{TITLES[source.format]}: {sum(tensor.numel() for tensor in source.tensors.values()):,} parameters in '
    f'{len(source.tensors)} tensors',
    f'  image encoder  width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}, patch {encoder.patch_size}; '
    f'global blocks {blocks}; '
    + (f'windows of {encoder.pretrain_window}' if encoder.attention_scope == 'windowed' else 'no windows'),
    f'  mask decoder   width {decoder.width}, depth {decoder.depth}, heads {decoder.heads}',
  ]
  if text:
    lines.append(
      f'  text encoder   width {text.width}, depth {text.depth}, heads {text.heads}, {text.vocab_size} words'
    )
  lines.append(f'  fusion         {config.fusion}, at {config.image_size} x {config.image_size}')
  lines += [
    f'  fresh: {part} ({reason})'
    for part, reason in FRESH.items()
    if any(path.startswith(f'{part}.') for path in fresh)
  ]
  if source.leftovers:
    lines.append(f'  kept aside, used by nothing: {", ".join(sorted(source.leftovers))}')
  if text and vocabulary is None:
    lines.append('  no vocabulary: predicting from sentences needs one, convert again with --vocab=vocab.txt')
  return '\n'.join([*lines, f'written: {output} ({saved_model.size(output) / 1e6:,.1f} MB)'])


def _initial_values(config: DitSamConfig, paths: list[str]) -> dict[str, np.ndarray]:
  """Values that a new model starts with. Compiled, so that nothing else of the model is ever computed."""
  if not paths:
    return {}

  @jax.jit
  def initial():
    weights = weights_of(DitSam(config, rngs=nnx.Rngs(0)))
    return {path: weights[path][...] for path in paths}

  return {path: np.asarray(value) for path, value in initial().items()}


def _shape(source: 'sources.Source', name: str) -> tuple[int, ...]:
  return tuple(source.tensors[name].shape)


def _spelled(name: str, source: 'sources.Source') -> str:
  """A tensor's name as its file has it; for one that is not there, in Meta's or the release's names."""
  return source.spelled.get(name, names.meta_name(name) if source.format == 'meta' else name)


def _report(problems: list[str], path: Path) -> None:
  """Prints all problems and gives up, or does nothing."""
  if not problems:
    return
  _list(problems)
  raise UserError(
    f'{path}: {len(problems)} problem{"s" if len(problems) > 1 else ""} with its tensors, listed above; '
    f'nothing was written. If the file is whole, it is of a model that is not known here'
  )


def _list(problems: Iterable[str]) -> None:
  for problem in problems:
    say(f'  {problem}')


def _positive(text: str) -> int:
  if not text.isdecimal() or not 1 <= int(text) <= 2**14:
    raise argparse.ArgumentTypeError(f'{text!r} is no whole number from 1 to {2**14}')
  return int(text)


if __name__ == '__main__':
  command_line.run(main)
