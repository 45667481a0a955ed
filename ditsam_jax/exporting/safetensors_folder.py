"""Weights as safetensors: plain SAM in the layout of transformers' SamModel, models with text under our own names.

A folder of a model with text has model.json and vocab.txt beside model.safetensors, and loads like any model folder.
"""

import jax.numpy as jnp
import numpy as np

from ditsam_jax.convert import hugging_face
from ditsam_jax.errors import UserError
from ditsam_jax.exporting.folders import check_target, is_model, written_folder
from ditsam_jax.exporting.request import Request
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.weights import is_position
from ditsam_jax.ops.resize import resize_grid, resize_rows
from ditsam_jax.storage import arrays, saved_model
from ditsam_jax.storage.building import check_weights
from ditsam_jax.storage.description import read_config, read_description, vocabulary_file
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.terminal import listed, printable


def export(request: Request) -> str:
  """Writes safetensors; for arguments, result and errors see `formats.export`."""
  config = read_config(request.checkpoint)
  check_target(request.output, hugging_face.is_export if config.text_encoder is None else is_model)
  weights = saved_model.read_weights(request.checkpoint)
  check_weights(config, weights, request.checkpoint)
  if config.text_encoder is not None:
    return _own(request, config, weights)
  return _hugging_face(request, config, weights)


def _own(request: Request, config: DitSamConfig, weights: dict[str, np.ndarray]) -> str:
  description = read_description(request.checkpoint)
  vocabulary = list(read_vocabulary(vocabulary_file(request.checkpoint)))
  saved_model.write(
    request.output,
    config,
    _typed(weights, request),
    vocabulary=vocabulary,
    data=description['data'],
    notes=description['notes'] | {'dtype': request.dtype},
    fresh=description['fresh'],
    assumed=description['assumed'],
    safetensors=True,
  )
  return (
    f'{printable(request.output)}: {saved_model.size(request.output) / 1e6:.2f} MB; {len(weights)} tensors under '
    f"ditsam_jax's names"
  )


def _hugging_face(request: Request, config: DitSamConfig, weights: dict[str, np.ndarray]) -> str:
  from ditsam_jax.convert.sources import release_tensors

  tensors = release_tensors(_typed(_at_own_size(config, weights), request, all_of_them=True))
  with written_folder(request.output, hugging_face.is_export, hugging_face.FILES) as folder:
    hugging_face.write_sam(folder, config, tensors)
    size = saved_model.size(folder)
  assumed = '; masks are upsampled without aligned corners there' if config.align_corners else ''
  return f"{printable(request.output)}: {size / 1e6:.2f} MB in the layout of transformers' SamModel{assumed}"


def _at_own_size(config: DitSamConfig, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Resizes positions to the model's own grid, as its encoder does for every image; SamModel does not."""
  encoder, resized = config.image_encoder, dict(weights)
  sizes = {f'image_encoder.blocks.{i}.attn': encoder.window(i) or config.grid for i in range(encoder.depth)}
  for name, array in weights.items():
    block, _, table = name.rpartition('.')
    if name == 'image_encoder.pos_embed':
      resized[name] = np.asarray(resize_grid(jnp.asarray(array, jnp.float32), (config.grid, config.grid)))
    elif table in ('rel_pos_h', 'rel_pos_w'):
      resized[name] = np.asarray(resize_rows(jnp.asarray(array, jnp.float32), 2 * sizes[block] - 1))
  return resized


def _typed(weights: dict[str, np.ndarray], request: Request, *, all_of_them: bool = False) -> dict[str, np.ndarray]:
  """Casts weights to the request's type; positional encodings stay f32, except in SamModel's layout, with one type.

  Raises:
    UserError: values overflow it.
  """
  dtype = jnp.dtype(request.dtype)
  with np.errstate(over='ignore'):
    typed = {
      name: array.astype(np.float32 if is_position(name) and not all_of_them else dtype)
      for name, array in weights.items()
    }
  if problems := arrays.unusable(typed.items()):
    raise UserError(
      f"'{printable(request.checkpoint)}': weights stored as {dtype}: {listed(problems)}; choose another --dtype"
    )
  return typed
