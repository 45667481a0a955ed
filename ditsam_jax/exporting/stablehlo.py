"""StableHLO: programs for CPUs, NVIDIA GPUs and TPUs that need only JAX, with their weights in separate files.

A program is a serialised `jax.export.Exported`; its first argument is a dictionary of weights, read from an .npz file.
Attention is plain XLA, which runs on every platform.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from ditsam_jax.exporting import interface, reference
from ditsam_jax.exporting.folders import check_target, written_folder
from ditsam_jax.exporting.reference import Case, Stages, difference
from ditsam_jax.exporting.report import checked, sizes, worst
from ditsam_jax.exporting.request import Request
from ditsam_jax.exporting.source import read
from ditsam_jax.geometry.letterbox import own_size_logits
from ditsam_jax.inference.programs import Parts, parts_of
from ditsam_jax.lowering import without_source_lines
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.models.weights import Structure, is_position
from ditsam_jax.storage.description import warn_if_fresh
from ditsam_jax.storage.files import write_json
from ditsam_jax.terminal import progress

PLATFORMS = ('cpu', 'cuda', 'tpu')
SUFFIX = '.jaxexport'
EXECUTION = Execution(attention='xla')
PARTS = (
  interface.FILE,
  interface.VOCABULARY,
  *(f'{name}{ending}' for name in interface.PROGRAMS for ending in (SUFFIX, f'_without_text{SUFFIX}', '.npz')),
)

Shape = list[int | str]  # axes of any size have names
Weights = dict[str, Any]


class Program(NamedTuple):
  """A program to export.

  Attributes:
    name: its file without the suffix.
    weights: its weights file without the suffix; programs may share one.
    function: of the weights and the inputs, in order.
    inputs, outputs: shapes by name.
  """

  name: str
  weights: str
  function: Callable
  inputs: dict[str, Shape]
  outputs: dict[str, Shape]

  def description(self) -> dict[str, Any]:
    """Its entry in interface.json."""

    def all_of(arrays: dict[str, Shape]) -> list[dict[str, Any]]:
      return [interface.array(name, dtype_of(name), shape) for name, shape in arrays.items()]

    files = {'file': self.name + SUFFIX, 'weights': f'{self.weights}.npz'}
    return {'name': self.name, **files, 'inputs': all_of(self.inputs), 'outputs': all_of(self.outputs)}


def dtype_of(name: str) -> str:
  """The type of an input or output."""
  return {'token_ids': 'int32', 'token_mask': 'int32', 'labels': 'int32', 'has_mask': 'bool'}.get(name, 'float32')


def export(request: Request) -> str:
  """Writes the folder and compares it with the model; for arguments, result and errors see `formats.export`."""
  is_export = functools.partial(interface.is_export, 'stablehlo')
  check_target(request.output, is_export)
  source = read(request)
  warn_if_fresh(request.checkpoint)
  parts = parts_of(source.model())
  programs = programs_of(parts, source.config)
  with (
    written_folder(request.output, is_export, PARTS) as folder,
    progress(len(programs) + 1, 'exporting', 'program') as bar,
  ):
    for name, weights in weights_of(parts).items():
      np.savez(folder / f'{name}.npz', allow_pickle=False, **stored(weights, request.dtype))
    for program in programs:
      with np.load(folder / f'{program.weights}.npz', allow_pickle=False) as weights:
        (folder / (program.name + SUFFIX)).write_bytes(serialised(program, dict(weights)))
      bar.update()
    cases = reference.cases(source)
    loaded, expected = Loaded(folder, source.config), reference.computed(source, cases)
    largest = worst(differences(loaded(case), stages, case) for case, stages in zip(cases, expected))
    report = checked(largest, 'the exported programs', 'the model')
    if source.pieces is not None:
      (folder / interface.VOCABULARY).write_text('\n'.join(source.pieces) + '\n', encoding='utf-8')
    described = interface.interface(
      source,
      'stablehlo',
      [program.description() for program in programs],
      jax=jax.__version__,
      calling_convention=jax_export.maximum_supported_calling_convention_version,
      platforms=list(PLATFORMS),
      weights={'dtype': request.dtype},
      largest_differences_from_jax=largest,
    )
    write_json(folder / interface.FILE, described)
    bar.update()
  return '\n'.join([report, *sizes(Path(request.output))])


def weights_of(parts: Parts) -> dict[str, Weights]:
  """The weights of each file."""
  found = {'image_encoder': parts.encoder[1], 'decoder': parts.decoder[1]}
  return found if parts.reader is None else {'text_encoder': parts.reader[1]} | found


def stored(weights: Weights, dtype: str) -> dict[str, np.ndarray]:
  """Weights in the type in which they are stored; coordinates stay f32."""
  return {name: np.asarray(array, np.float32 if is_position(name) else dtype) for name, array in weights.items()}


def programs_of(parts: Parts, config: DitSamConfig) -> list[Program]:
  """The programs of a model. Those for prompts without a sentence share the weights of the others."""
  size, grid, width, tokens = config.image_size, config.grid, config.mask_decoder.width, config.max_text_tokens
  images: dict[str, Shape] = {'images': ['batch', size, size, 3]}
  embeddings: dict[str, Shape] = {'image_embeddings': ['batch', grid, grid, width]}
  prompts: dict[str, Shape] = {
    'image_embeddings': ['batch', grid, grid, width],
    'points': ['batch', 'points', 2],
    'labels': ['batch', 'points'],
    'mask': ['batch', 4 * grid, 4 * grid],
    'has_mask': ['batch'],
  }
  outputs: dict[str, Shape] = {
    'square_masks': ['batch', 4, size, size],
    'iou_predictions': ['batch', 4],
    'low_res_masks': ['batch', 4, 4 * grid, 4 * grid],
  }
  encode = functools.partial(_encode, parts.encoder[0])
  decode = functools.partial(_decode, parts.decoder[0])
  if parts.reader is None or config.text_encoder is None:
    return [
      Program('image_encoder', 'image_encoder', encode, images, embeddings),
      Program('decoder', 'decoder', decode, prompts, outputs),
    ]
  text: dict[str, Shape] = {'text_features': ['batch', tokens, config.text_encoder.width]}
  sentence: dict[str, Shape] = {'token_ids': ['batch', tokens], 'token_mask': ['batch', tokens]}
  encoders = [Program('image_encoder', 'image_encoder', encode, images, embeddings)]
  if config.encodes_text_with_image:
    encoders = [
      Program('image_encoder', 'image_encoder', encode, images | text, embeddings),
      Program('image_encoder_without_text', 'image_encoder', encode, images, embeddings),
    ]
  return [
    Program('text_encoder', 'text_encoder', functools.partial(_read, parts.reader[0]), sentence, text),
    *encoders,
    Program('decoder', 'decoder', decode, prompts | text, outputs),
    Program('decoder_without_text', 'decoder', decode, prompts, outputs),
  ]


def serialised(program: Program, weights: Weights) -> bytes:
  """Exports a program for all platforms, for any batch and number of points of at least 1."""
  scope = jax_export.SymbolicScope()

  def argument(name: str, shape: Shape) -> jax.ShapeDtypeStruct:
    axes = jax_export.symbolic_shape(', '.join(map(str, shape)), scope=scope)
    return jax.ShapeDtypeStruct(axes, jnp.dtype(dtype_of(name)))

  arguments = [argument(name, shape) for name, shape in program.inputs.items()]
  structs = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in weights.items()}

  def run(weights, *inputs):
    return program.function(_single(weights), *inputs)

  with without_source_lines():
    return bytes(jax_export.export(jax.jit(run), platforms=PLATFORMS)(structs, *arguments).serialize())


def _single(weights: Weights) -> Weights:
  """Weights in f32, the type of the computation."""
  return {name: array.astype(jnp.float32) for name, array in weights.items()}


def _read(part: Structure, weights: Weights, token_ids: jax.Array, token_mask: jax.Array) -> jax.Array:
  return part.module(weights)(token_ids, token_mask)


def _encode(part: Structure, weights: Weights, images: jax.Array, text: jax.Array | None = None) -> jax.Array:
  return part.module(weights)(images, text, execution=EXECUTION)


def _decode(part: Structure, weights: Weights, embedding, points, labels, mask, has_mask, text=None):
  """All four masks, the single one first, as squares and at low resolution, and their predicted IoU."""
  model = part.module(weights)
  side = (model.config.image_size,) * 2
  sparse = [model.prompt_encoder.embed_points(points, labels, side)]
  output = model.decode(embedding, sparse, mask, side, None, text, labels != ABSENT, has_mask)
  return output.logits, output.iou, output.low_res_logits


class Loaded:
  """An exported folder, run on the CPU."""

  def __init__(self, folder: Path, config: DitSamConfig):
    """Reads the programs of `folder` and their weights."""
    self.config = config
    self._programs = {
      file.stem: jax_export.deserialize(bytearray(file.read_bytes())) for file in folder.glob(f'*{SUFFIX}')
    }
    self._weights = {file.stem: dict(np.load(file, allow_pickle=False)) for file in folder.glob('*.npz')}

  def __call__(self, case: Case) -> dict[str, np.ndarray]:
    """Runs all programs on a case; returns every output by name, without the batch."""
    side = 4 * self.config.grid
    points, labels = case.points, case.labels
    if not len(points):
      points, labels = np.zeros((1, 2), np.float32), np.array([ABSENT], np.int32)
    mask = np.zeros((side, side), np.float32) if case.mask is None else case.mask
    text, images = [], [case.framed.square.pixels[None]]
    if case.tokens is not None:
      text = [self.run('text_encoder', *(rows[None] for rows in case.tokens))]
    alone = '' if text or self.config.text_encoder is None else '_without_text'
    if self.config.encodes_text_with_image:
      embedding = self.run(f'image_encoder{alone}', *images, *text)
    else:
      embedding = self.run('image_encoder', *images)
    given = points[None], labels[None], mask[None], np.array([case.mask is not None])
    squares, iou, low_res = self.run(f'decoder{alone}', embedding, *given, *text)
    found = {'text_features': text[0]} if text else {}
    found |= {'image_embeddings': embedding, 'square_masks': squares, 'iou_predictions': iou, 'low_res_masks': low_res}
    return {name: np.asarray(array)[0] for name, array in found.items()}

  def run(self, program: str, *inputs: Any) -> Any:
    """Runs one program by name on its inputs, in order."""
    weights = self._weights[program.removesuffix('_without_text')]
    with jax.default_device(jax.local_devices(backend='cpu')[0]):
      return jax.jit(self._programs[program].call)(weights, *inputs)


def differences(found: dict[str, np.ndarray], stages: Stages, case: Case) -> dict[str, float]:
  """The largest difference of each output from the model, relative to the model's largest value."""
  framed = case.framed
  ours = {
    'image_embeddings': stages.image_embedding,
    'low_res_masks': stages.low_res_masks,
    'iou_predictions': stages.iou,
    'square_masks': stages.masks,
  }
  if stages.text_features is not None:
    ours['text_features'] = stages.text_features
  squares = [own_size_logits(square, framed.box, framed.size) for square in found['square_masks']]
  theirs = found | {'square_masks': np.stack(squares)}
  return {name: difference(array, theirs[name]) for name, array in ours.items()}
