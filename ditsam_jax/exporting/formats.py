"""The table of export formats."""

import importlib
import importlib.util
import os
from typing import NamedTuple

from ditsam_jax.errors import UserError
from ditsam_jax.exporting.request import Request
from ditsam_jax.storage import places
from ditsam_jax.storage.paths import local
from ditsam_jax.terminal import printable


class Format(NamedTuple):
  """One format.

  Attributes:
    title: what it is for, in a few words.
    module: its module in `ditsam_jax.exporting`, imported only when the format is chosen. The module's
      `export(request)` writes the folder and returns a report for the terminal.
    dtypes: types that weights can be stored in, the default first.
    quantise: supported values of --quantise.
    masks: supported values of --masks.
    packages: optional packages that it imports.
    extra: the extra of pyproject.toml that installs them.
  """

  title: str
  module: str
  dtypes: tuple[str, ...]
  quantise: tuple[str, ...] = ()
  masks: tuple[str, ...] = ()
  packages: tuple[str, ...] = ()
  extra: str = ''


FORMATS = {
  'flax': Format('a copy for ditsam_jax', 'flax_folder', ('float32', 'float16', 'bfloat16')),
  'stablehlo': Format(
    'programs for JAX alone, without this library',
    'stablehlo',
    ('float32', 'float16'),
    packages=('flatbuffers',),
    extra='stablehlo',
  ),
  'safetensors': Format(
    "transformers' SamModel for plain SAM, ditsam_jax for models with text",
    'safetensors_folder',
    ('float32', 'float16', 'bfloat16'),
    packages=('safetensors',),
    extra='hub',
  ),
  'onnx': Format(
    'programs for ONNX Runtime',
    'onnx_files',
    ('float32', 'float16'),
    quantise=('int8',),
    masks=('best', 'all'),
    packages=('onnx', 'onnxruntime', 'onnxscript', 'torch', 'segment_anything', 'transformers'),
    extra='onnx',
  ),
}


def export(name: str, request: Request) -> str:
  """Exports a model to the format `name`; returns a report for the terminal.

  Raises:
    UserError: the format does not support an option, a package is missing, the model cannot be read, or the folder is
      the model's own or cannot be written.
  """
  chosen = FORMATS[name]
  for option, value, supported in (
    ('--dtype', request.dtype, chosen.dtypes),
    ('--quantise', request.quantise, chosen.quantise),
    ('--masks', request.masks, chosen.masks),
  ):
    if value is not None and value not in supported:
      raise UserError(
        f'{option}={value} with --format={name}: expected {" or ".join(supported) if supported else "no " + option}'
      )
  missing = [package for package in chosen.packages if importlib.util.find_spec(package) is None]
  if missing:
    raise UserError(
      f"--format={name} needs {', '.join(missing)}; install the extra '{chosen.extra}': "
      f"pip install 'ditsam_jax[{chosen.extra}]'"
    )
  if os.path.realpath(places.resolve(request.checkpoint)) == os.path.realpath(local(request.output)):
    raise UserError(
      f'--output={printable(request.output)} is the model itself, which would be replaced; choose another'
    )
  return importlib.import_module(f'ditsam_jax.exporting.{chosen.module}').export(request)
