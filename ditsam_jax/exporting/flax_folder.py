"""A copy of a model as a ditsam_jax folder, optionally in a smaller type."""

import jax.numpy as jnp

from ditsam_jax.exporting.folders import check_target, is_model
from ditsam_jax.exporting.request import Request
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_description, vocabulary_file


def export(request: Request) -> str:
  """Copies a model; for arguments, result and errors see `formats.export`."""
  check_target(request.output, is_model)
  description = read_description(request.checkpoint)
  model = saved_model.load(request.checkpoint)
  vocabulary = None if model.config.text_encoder is None else vocabulary_file(request.checkpoint)
  saved_model.save(
    request.output,
    model,
    vocabulary=vocabulary,
    data=description['data'],
    notes=description['notes'] | {'dtype': request.dtype},
    fresh=description['fresh'],
    assumed=description['assumed'],
    dtype=jnp.dtype(request.dtype),
  )
  return f'{request.output}: {saved_model.size(request.output) / 1e6:.2f} MB'
