"""Copies a source's tensors into our weights; checks names, shapes and values."""

from pathlib import Path

import jax
import numpy as np
from flax import nnx

from ditsam_jax.convert import names, sources
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import arrays
from ditsam_jax.terminal import printable, say

FRESH = {'text_proj': 'a plain SAM has no text prompts', 'image_encoder.instruction': 'the fusion is new'}
_MOST_LINES = 20


def fill(config: DitSamConfig, source: sources.Source) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns our weights by dotted path, in the source's types and without copies, and the freshly initialised paths.

  Raises:
    UserError: tensors are unknown, missing, unused or of a wrong shape, or contain NaN, infinities or numbers too large
      for f32. All problems are listed on stderr first.
  """
  model = abstract_model(config)
  weights, fresh, problems = {}, [], list(source.problems.values())
  used: set[str] = set()
  may_be_fresh = names.FORMATS[source.format].model != 'DIT' and config.text_encoder is not None
  for path, variable in weights_of(model).items():
    entry = names.entry(path)
    expected = [part.shape for part in entry.save(np.broadcast_to(np.float32(0), variable.shape))]
    missing = [name for name in entry.names if name not in source.tensors]
    used |= set(entry.names)
    if missing and may_be_fresh and path.startswith(tuple(f'{part}.' for part in FRESH)):
      fresh.append(path)
      continue
    problems += [f'{spelled(name, source)} is missing' for name in missing if name not in source.problems]
    problems += [
      f'{spelled(name, source)} is {_shape(source, name)}, expected {shape}'
      for name, shape in zip(entry.names, expected)
      if name not in missing and _shape(source, name) != shape
    ]
    types = {str(source.tensors[name].dtype) for name in entry.names if name in source.tensors}
    if len(types) > 1:
      problems.append(f'{spelled(entry.names[0], source)} and its like are of several types ({", ".join(types)})')
    if not problems:
      weights[path] = entry.load([sources.to_numpy(source.tensors[name]) for name in entry.names])
  problems += [
    f'{spelled(name, source)} does not exist in a model of these sizes' for name in source.tensors if name not in used
  ]
  problems += arrays.unusable(
    (source.spelled.get(name, name), sources.to_numpy(source.tensors[name])) for name in used & source.tensors.keys()
  )
  _report(problems, source.path)
  return weights | _initial_values(config, fresh), fresh


def spelled(name: str, source: sources.Source) -> str:
  """A tensor's name as spelled in its file; if it is not in the file, the format's spelling."""
  return printable(source.spelled.get(name) or names.FORMATS[source.format].spell(name))


def say_all(problems: list[str]) -> None:
  """Prints problems to stderr, one per line; only the first ones and a count if there are many."""
  for problem in problems[:_MOST_LINES]:
    say(f'  {problem}')
  if len(problems) > _MOST_LINES:
    say(f'  and {len(problems) - _MOST_LINES:,} more')


def _initial_values(config: DitSamConfig, paths: list[str]) -> dict[str, np.ndarray]:
  """Initial values of a new model. Compiled, so that XLA drops the other weights."""
  if not paths:
    return {}

  @jax.jit
  def initial():
    weights = weights_of(DitSam(config, rngs=nnx.Rngs(0)))
    return {path: weights[path][...] for path in paths}

  return {path: np.asarray(value) for path, value in initial().items()}


def _shape(source: sources.Source, name: str) -> tuple[int, ...]:
  return tuple(source.tensors[name].shape)


def _report(problems: list[str], path: Path) -> None:
  """Prints all problems and raises UserError, if there are any."""
  if not problems:
    return
  say_all(problems)
  raise UserError(
    f'{printable(path)}: {len(problems)} problem{"s" if len(problems) > 1 else ""} with its tensors, listed above; '
    f'nothing was written. If the file is complete, its model is not supported'
  )
