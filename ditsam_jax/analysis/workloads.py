"""The programs that the planner compiles: a training step of a config, and the forward pass of its model."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ditsam_jax.analysis import targets
from ditsam_jax.analysis.figures import Figures, Store, figures
from ditsam_jax.analysis.planner import Settings
from ditsam_jax.analysis.targets import AMPLE, Target
from ditsam_jax.config import checks, lengths
from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.config.freeze import freeze_patterns
from ditsam_jax.config.run import LossConfig, ResolvedRunConfig
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import abstract_model
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.weights import Structure, is_position, weights_of
from ditsam_jax.parallel.sharding import make_mesh
from ditsam_jax.training.program import Program, attention_for, build
from ditsam_jax.training.step import trained_of

# Fields that a step's memory and time depend on.
_FIELDS = ('task', 'rounds', 'freeze', 'model', 'mesh', 'dtype', 'accumulate', 'remat', 'scan', 'attention')


def program(config: ConfigDict, target: Target, memory: int | None = None) -> tuple[ResolvedRunConfig, Program]:
  """Builds the train step of a config on a target's devices. For `memory` and errors see `targets.devices_of`.

  Raises:
    UserError: the compiler is missing, or the mesh does not divide the batch or the heads.
  """
  checked = checks.check(config)
  mesh = make_mesh(checked.mesh, targets.devices_of(target, memory))
  run = lengths.resolve(config, lambda: lengths.samples_without_data(checked))
  return run, build(run, run.model, mesh)


def changed(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
  """Returns a copy of a config with some fields changed."""
  copy = ConfigDict(config.to_dict())
  copy.update_from_flattened_dict(changes)
  return copy


class Training:
  """Measures the train step of a config with other settings and batch sizes."""

  def __init__(self, config: ConfigDict, target: Target, store: Store, tell: Callable[[str], None] = lambda text: None):
    """`tell(text)` is called before and after each compilation that is necessary."""
    self._config, self._target, self._store, self._tell = config, target, store, tell
    run = checks.check(config)
    mesh = make_mesh(run.mesh, [jax.devices('cpu')[0]] * target.count)
    self._fsdp = mesh.shape['fsdp']
    self.shares = mesh.shape['data'] * self._fsdp  # of the batch
    # Images per device come in multiples of this.
    self.unit = run.sample_group

  def with_settings(self, settings: Settings, images: int, parts: int) -> ConfigDict:
    """The config of a step with `parts` micro-batches of `images` per device."""
    fields = dataclasses.asdict(settings)
    return changed(self._config, fields | {'accumulate': parts, 'data.batch_size': images * parts * self.shares})

  def known(self, settings: Settings, images: int, parts: int = 1) -> Figures | None:
    """Figures that need no compilation, or None."""
    return self._store.get(_description(self.with_settings(settings, images, parts)), self._target)

  def measure(self, settings: Settings, images: int, parts: int) -> Figures:
    """See `planner.Measure`."""
    config = self.with_settings(settings, images, parts)

    def compiled(lowered: jax.stages.Lowered) -> Figures:
      text = f'{settings}, {images} per device' + (f', {parts} micro-batches' if parts > 1 else '')
      self._tell(f'compiling: {text} ...')
      found = figures(lowered, self._target)
      self._tell(_outcome(found))
      return found

    return self._store.find(
      _description(config), self._target, lambda: program(config, self._target, AMPLE)[1].lower(), compiled
    )

  def gradient_bytes(self, settings: Settings) -> float:
    """Bytes per chip of the f32 sums of gradients that accumulation adds."""
    sizes = _parameter_sizes(checks.check(self._config).model)
    trained = trained_of(set(sizes), freeze_patterns(settings.freeze))
    return 4 * sum(sizes[name] for name in trained) / self._fsdp


class Inference:
  """Measures the forward pass of a model on one device: images and sentences to logits."""

  def __init__(self, model: DitSamConfig, target: Target, store: Store):
    self._model, self._target, self._store = model, target, store

  def known(self, settings: Settings, images: int, parts: int = 1) -> Figures | None:
    """Figures that need no compilation, or None."""
    return self._store.get(self._describe(settings, images), self._target)

  def measure(self, settings: Settings, images: int, parts: int = 1) -> Figures:
    """See `planner.Measure`; of the settings, only the type matters."""
    del parts
    return self._store.find(
      self._describe(settings, images),
      self._target,
      lambda: self._lowered(settings, images),
      lambda lowered: figures(lowered, self._target),
    )

  def _describe(self, settings: Settings, images: int) -> dict[str, Any]:
    model = dataclasses.asdict(self._model)
    return {'inference': images, 'dtype': settings.dtype, 'model': _plain(model)}

  def _lowered(self, settings: Settings, images: int) -> jax.stages.Lowered:
    device = targets.devices_of(self._target, AMPLE)[0]
    place, dtype = jax.sharding.SingleDeviceSharding(device), jnp.dtype(settings.dtype)
    model = abstract_model(self._model)
    model.eval()
    structure = Structure(model)
    execution = Execution(scan=True, attention=attention_for('auto', self._model, device.platform, dtype))

    def array(shape, dtype=dtype):
      return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

    weights = {
      name: array(value.shape, jnp.float32 if is_position(name) else dtype) for name, value in weights_of(model).items()
    }
    side, tokens = self._model.image_size, self._model.max_text_tokens
    inputs = array((images, side, side, 3), jnp.float32), *(array((images, tokens), jnp.int32),) * 2

    def forward(weights, *inputs):
      return structure.module(weights)(*inputs, execution=execution).logits

    return jax.jit(forward).lower(weights, *inputs)


def _outcome(found: Figures) -> str:
  needed = 'too large' if found.bytes is None else f'{found.bytes / 2**30:.2f} GiB'
  return f'  {needed}, compiled in {found.compile_seconds:.0f} s'


@functools.cache
def _parameter_sizes(config: DitSamConfig) -> dict[str, int]:
  model = abstract_model(config)
  weights = weights_of(model)
  return {name: math.prod(weights[name].shape) for name in Structure(model).parameters}


def _description(config: ConfigDict) -> dict[str, Any]:
  """What determines the program of a train step."""
  plain = config.to_dict()
  fields = {name: plain[name] for name in _FIELDS}
  # Only what differs: figures that are already kept stay known.
  defaults = {'loss': LossConfig()} | ({'first_prompts': FirstPromptConfig()} if plain['task'] == 'interactive' else {})
  fields |= {name: plain[name] for name, default in defaults.items() if plain[name] != dataclasses.asdict(default)}
  data = {name: plain['data'][name] for name in ('batch_size', 'objects_per_image')}
  return _plain(fields | {'data': data, 'optimizer': plain['optimizer']['name']})


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _plain(item) for name, item in value.items()}
  return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
