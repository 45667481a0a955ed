"""Converts PyTorch weights: python convert/torch_to_flax.py --input=FILE_OR_DIR --output=DIR

Accepts Meta's SAM, checkpoints of the DIT release, Hugging Face's SamModel, and any SAM with a BERT (--text-encoder),
as a starting point for training with text. The architecture is inferred from tensor shapes; docs/convert.md lists the
settings that shapes lack and their sources.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ditsam_jax import command_line
from ditsam_jax.convert import companion as companions
from ditsam_jax.convert import hugging_face, names, sources
from ditsam_jax.convert.architecture import read_architecture
from ditsam_jax.convert.fill import FRESH, fill, say_all, spelled
from ditsam_jax.convert.places import local_weights, place
from ditsam_jax.convert.words import find_vocabulary
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.options import Parser
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import parts_of
from ditsam_jax.storage.paths import local_path
from ditsam_jax.terminal import printable, say


class Model(NamedTuple):
  """The model to convert."""

  source: 'sources.Source'
  config: DitSamConfig
  assumed: dict[str, object]  # config fields taken from a known model, because neither the file nor a flag states them
  companion: companions.Companion | None  # written by flax_to_torch, next to the file


def main(arguments: list[str] | None = None) -> int:
  """Runs the command."""
  options = _parse(arguments)
  if options.verify:
    from ditsam_jax.convert import torch_peer

    torch_peer.check_installed()

  say(f'reading {printable(options.input)}')
  text_encoder = None if options.text_encoder is None else local_weights(options.text_encoder)
  given_words = None if options.vocab is None else local_weights(options.vocab)
  model = read(
    local_weights(options.input),
    text_encoder=text_encoder,
    config_file=options.config,
    fusion=options.fusion,
    image_size=options.image_size,
    decoder_heads=options.decoder_heads,
    text_heads=options.text_heads,
  )
  source, config = model.source, model.config
  if config.text_encoder is None and options.text_heads is not None:
    raise UserError(f'--text-heads={options.text_heads}: a plain SAM takes no text; omit it')
  vocabulary = find_vocabulary(config, given_words, text_encoder or source.path, model.companion)
  weights, fresh_weights = fill(config, source)
  verified = torch_peer.compare(source.tensors, config, weights) if options.verify else ''
  say(f'writing {printable(options.output)}')
  about = model.companion.about if model.companion else {}
  fresh = parts_of(fresh_weights)
  notes = about.get('notes', {}) | {'source': {'format': source.format, 'prefix': source.prefix, **source.extra}}
  notes.pop('dtype', None)  # of the weights of an export, which these are not
  saved_model.write(
    options.output,
    config,
    weights,
    vocabulary=vocabulary,
    data=about.get('data'),
    notes=notes,
    fresh=sorted({*fresh, *about.get('fresh', ())}),
    assumed=sorted({*model.assumed, *about.get('assumed', ())}),
    leftovers={name: sources.to_numpy(tensor) for name, tensor in source.leftovers.items()},
  )
  print(describe(model, fresh, vocabulary, options.output))
  if verified:
    print(verified)
  return 0


def read(
  path: Path,
  *,
  text_encoder: Path | None = None,
  config_file: Path | None = None,
  fusion: str | None = None,
  image_size: int | None = None,
  decoder_heads: int | None = None,
  text_heads: int | None = None,
) -> Model:
  """Reads a checkpoint, adds a BERT's tensors if one is given, and determines the config.

  Args:
    path: the SAM.
    text_encoder: a BERT to combine it with.
    config_file: the JSON that flax_to_torch wrote for this model, if it is not next to the file.
    fusion: see `read_architecture`, also for the rest.
    image_size: see `read_architecture`.
    decoder_heads: see `read_architecture`.
    text_heads: see `read_architecture`.

  Raises:
    UserError: a file is unreadable or of the wrong kind, the architecture cannot be inferred, or a flag contradicts a
      file.
  """
  source = sources.read(path)
  if names.FORMATS[source.format].model == 'BERT':
    raise UserError(f'{printable(path)} is only a BERT; give it as --text-encoder, and a SAM as --input')
  companion = companions.read(config_file) if config_file is not None else companions.find(path)
  if companion is not None and config_file is None:
    companions.check_belongs(
      companion, path, {name: sources.to_numpy(tensor) for name, tensor in source.tensors.items()}
    )
  flags = {
    'fusion': fusion, 'image_size': image_size, 'decoder_heads': decoder_heads, 'text_heads': text_heads
  }  # fmt: skip
  if text_encoder is None and companion is not None:
    _check_flags(flags, _flags_of(companion.config), companion.path)
    return Model(source, companion.config, {}, companion)
  known = {'decoder_heads': hugging_face.decoder_heads(path)}
  _check_flags(flags, known, hugging_face.config_file(path))
  if companion is not None:  # the SAM has one, and is combined with a BERT
    known = {'decoder_heads': companion.config.mask_decoder.heads}
    _check_flags(flags, known, companion.path)
  if text_encoder is not None:
    source = _combined(source, text_encoder)
    heads = {'text_heads': hugging_face.text_heads(text_encoder)}
    _check_flags(flags, heads, hugging_face.config_file(text_encoder))
    known |= heads
  flags |= {name: value for name, value in known.items() if value is not None}
  shapes = {name: tuple(tensor.shape) for name, tensor in source.tensors.items()}
  try:
    config, assumed = read_architecture(shapes, new_fusion=text_encoder is not None, **flags)
  except (UserError, KeyError) as error:
    say_all(list(source.problems.values()))  # which may be the cause
    if isinstance(error, UserError):
      raise
    name, file = error.args[0], path
    if text_encoder is not None and name.startswith('lang_encoder.'):
      source, file = source._replace(format='bert'), text_encoder
    raise UserError(
      f'{printable(file)}: {spelled(name, source)} is missing, so the architecture cannot be inferred; '
      f'if the file is complete, its model is not supported'
    ) from error
  if companion is not None:
    pixels = {name: getattr(companion.config, name) for name in ('pixel_mean', 'pixel_std')}
    config = dataclasses.replace(config, **pixels)
    assumed = {name: value for name, value in assumed.items() if name not in pixels}
  return Model(source, config, assumed, None)


def _combined(source: 'sources.Source', text_encoder: Path) -> 'sources.Source':
  """Adds the tensors of a BERT to a SAM."""
  bert = sources.read(text_encoder)
  kind = names.FORMATS[bert.format]
  if kind.model != 'BERT':
    raise UserError(f'--text-encoder={printable(text_encoder)} is not a BERT but {kind.title}')
  if any(name.startswith('lang_encoder.') for name in source.tensors):
    raise UserError(f'{printable(source.path)} already has a text encoder; omit --text-encoder')
  return source._replace(
    tensors=source.tensors | bert.tensors,
    spelled=source.spelled | bert.spelled,
    leftovers=source.leftovers | bert.leftovers,
    problems=source.problems | bert.problems,
  )


def _flags_of(config: DitSamConfig) -> dict[str, object]:
  """Returns the flags that correspond to a config."""
  text = {'text_heads': config.text_encoder.heads} if config.text_encoder else {}
  return {
    'fusion': config.fusion, 'image_size': config.image_size, 'decoder_heads': config.mask_decoder.heads, **text
  }  # fmt: skip


def _check_flags(flags: dict[str, object], known: Mapping[str, object], file: Path) -> None:
  """Raises UserError if a flag contradicts a file."""
  for name, value in known.items():
    if None not in (value, flags[name]) and flags[name] != value:
      raise UserError(
        f'--{name.replace("_", "-")}={flags[name]}, but {printable(file)} says {value}; omit the flag, '
        f'or correct the file'
      )


def describe(model: Model, fresh: list[str], vocabulary: list[str] | None, output: Path) -> str:
  """Describes the converted model for display."""
  source, config = model.source, model.config
  encoder, decoder, text = config.image_encoder, config.mask_decoder, config.text_encoder
  blocks = ', '.join(map(str, encoder.global_blocks)) or 'none'
  lines = [
    f'{names.FORMATS[source.format].title}: {sum(tensor.numel() for tensor in source.tensors.values()):,} parameters '
    f'in {len(source.tensors)} tensors',
    f'  image encoder  width {encoder.width}, depth {encoder.depth}, heads {encoder.heads}, patch '
    f'{encoder.patch_size}; global blocks {blocks}; '
    + (f'windows of {encoder.pretrain_window}' if encoder.attention_scope == 'windowed' else 'no windows'),
    f'  mask decoder   width {decoder.width}, depth {decoder.depth}, heads {decoder.heads}',
  ]
  if text:
    lines.append(
      f'  text encoder   width {text.width}, depth {text.depth}, heads {text.heads}, {text.vocab_size} words'
    )
  lines.append(f'  fusion         {config.fusion}, at {config.image_size} x {config.image_size}')
  if model.assumed:
    assumed = ', '.join(f'{name} {_shown(value)}' for name, value in model.assumed.items())
    lines.append(f'  assumed, because the file does not state it: {assumed}')
  lines += [f'  fresh: {part} ({FRESH[part]})' for part in FRESH if part in fresh]
  if source.leftovers:
    lines.append(f'  kept, but unused: {", ".join(sorted(source.leftovers))}')
  if text and vocabulary is None:
    lines.append('  no vocabulary: text prompts need one; convert again with --vocab=vocab.txt')
  return '\n'.join([*lines, f'written: {printable(output)} ({saved_model.size(output) / 1e6:,.1f} MB)'])


def _shown(value: object) -> str:
  return '/'.join(map(str, value)) if isinstance(value, tuple) else str(value)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
  parser = Parser(prog='python convert/torch_to_flax.py', description=(__doc__ or '').split('\n')[0])
  parser.add_argument(
    '--input', required=True, type=place, help='a PyTorch file, a Hugging Face folder, or hf://OWNER/NAME[/FILE]'
  )
  parser.add_argument(
    '--output', required=True, type=local_path, help='output folder; an existing model there is replaced'
  )
  parser.add_argument(
    '--fusion',
    choices=FUSIONS,
    help='needed for layer_wise and e2e, which have the same tensors, and with --text-encoder',
  )
  parser.add_argument(
    '--text-encoder', type=place, metavar='FILE_OR_DIR', help='a BERT to combine with a plain SAM; hf://OWNER/NAME too'
  )
  parser.add_argument(
    '--vocab', type=place, metavar='FILE', help='vocab.txt or tokenizer.json, to predict from sentences'
  )
  parser.add_argument('--image-size', type=_positive, help='default: 512, as in the release; for a plain SAM its own')
  parser.add_argument(
    '--decoder-heads', type=_positive, help="heads of the mask decoder; needed for sizes other than SAM's"
  )
  parser.add_argument('--text-heads', type=_positive, help='heads of BERT; needed for sizes other than base and large')
  parser.add_argument(
    '--config',
    type=local_path,
    metavar='JSON',
    help='the JSON written by flax_to_torch.py, if the weights have been trained since (default: INPUT.json, '
    'if it matches the weights)',
  )
  parser.add_argument('--verify', action='store_true', help='also run the model in PyTorch and compare all stages')
  return parser.parse_args(arguments)


def _positive(text: str) -> int:
  if not (text.isascii() and text.isdecimal()) or len(text) > 5 or not 1 <= int(text) <= 2**14:
    raise argparse.ArgumentTypeError(f'{printable(text)} is not a whole number from 1 to {2**14}')
  return int(text)


if __name__ == '__main__':
  command_line.run(main, on_cpu=True)
