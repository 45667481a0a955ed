"""The compiled train step of a run, the shapes and shardings of its arguments, and its initial state.

Nothing is computed before `initial_state`, so the program can also be compiled for a pod that is not available.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ditsam_jax.config.freeze import freeze_patterns
from ditsam_jax.config.run import ResolvedRunConfig, reads_text
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.execution import AUTO, Execution, automatic
from ditsam_jax.models.weights import Structure, Weights, weights_of
from ditsam_jax.ops.attention.choice import fastest, why_not
from ditsam_jax.parallel import sharding
from ditsam_jax.storage import arrays
from ditsam_jax.training.interactive import interactive_forward
from ditsam_jax.training.optimizer import make_optimizer
from ditsam_jax.training.prompt_rounds import prompt_forward
from ditsam_jax.training.start import read_start
from ditsam_jax.training.step import (
  Batch,
  TrainState,
  averaged_model,
  fresh_state,
  make_train_step,
  text_forward,
  trained_of,
)


@dataclasses.dataclass(frozen=True)
class Program:
  """A train step with its mesh, model structure, and abstract state and batch."""

  mesh: Mesh
  structure: Structure
  state: TrainState  # shapes, types and shardings
  batch: dict[str, jax.ShapeDtypeStruct]  # the global batch, over all hosts
  _step: Any
  _optimizer: optax.GradientTransformation
  _model: DitSamConfig
  _seed: int

  def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """Runs one update; `state` is donated."""
    with jax.set_mesh(self.mesh):
      return self._step(state, batch)

  def assemble(self, rows: dict[str, np.ndarray]) -> Batch:
    """Assembles the global batch from the rows of each host (`sharding.rows_of_this_host`)."""
    return {
      name: jax.make_array_from_process_local_data(self.batch[name].sharding, array, self.batch[name].shape)
      for name, array in rows.items()
    }

  def lower(self) -> jax.stages.Lowered:
    """Lowers the step for compilation, without arrays."""
    with jax.set_mesh(self.mesh):
      return self._step.lower(self.state, self.batch)

  def compiled(self) -> tuple['Program', jax.stages.Compiled]:
    """Returns this program with its step compiled ahead of time, and the compiled step."""
    step = self.lower().compile()
    return dataclasses.replace(self, _step=step), step

  def initial_state(
    self, init_from: str = '', grown: Mapping[str, Callable[[np.ndarray], np.ndarray]] = MappingProxyType({})
  ) -> tuple[TrainState, list[str]]:
    """Creates the state before the first update.

    Arrays of `init_from` are read directly in their shardings; each host draws the others whole, on one of its devices.

    Args:
      init_from: a saved model to initialise weights from; the weights it lacks are initialised randomly.
      grown: for weights with more rows than the saved ones, see `read_start`.

    Returns:
      The state, and the names of the randomly initialised weights.

    Raises:
      UserError: `init_from` cannot be read, or does not fit.
    """
    expected = self.state.params | self.state.frozen
    weights = read_start(init_from, expected, grown) if init_from else {}
    fresh = {name: array for name, array in expected.items() if name not in weights}
    if fresh:
      weights |= _fresh_weights(self._model, self._seed, fresh)
    make = functools.partial(fresh_state, trained=set(self.state.params), optimizer=self._optimizer)
    out_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    return jax.jit(make, out_shardings=out_shardings, donate_argnums=0)(weights), list(fresh)

  def averaged_model(self, state: TrainState) -> DitSam:
    """Returns the model with averaged weights, in eval mode, on one device of each host; all hosts must call it."""
    replicate = jax.jit(_identity, out_shardings=sharding.replicated(self.mesh))
    ema, frozen = jax.tree.map(lambda array: array.addressable_data(0), replicate((state.ema, state.frozen)))
    return averaged_model(self.structure, state._replace(ema=ema, frozen=frozen))


def build(config: ResolvedRunConfig, model: DitSamConfig, mesh: Mesh) -> Program:
  """Builds the program of a resolved config on a mesh, whose devices need not be available.

  Raises:
    UserError: the mesh does not divide the batch or the heads, a part of `config.freeze` matches nothing, or
      `config.attention` is unsupported on these devices.
  """
  platform = mesh.devices.flat[0].platform
  attention = attention_for(config.attention, model, platform, jnp.dtype(config.dtype))
  sharding.check_divides(mesh, model.heads, config.data.batch_size, config.accumulate, config.sample_group)
  abstract = abstract_model(model)
  abstract.train()
  structure = Structure(abstract)
  weights = {
    name: jax.ShapeDtypeStruct(variable.shape, variable.dtype) for name, variable in weights_of(abstract).items()
  }
  optimizer, rate = make_optimizer(config.optimizer, config.total_steps)
  trained = trained_of(structure.parameters, freeze_patterns(config.freeze))
  state = jax.eval_shape(functools.partial(fresh_state, trained=trained, optimizer=optimizer), weights)
  shardings = sharding.state_shardings(state, weights, mesh)
  step = make_train_step(
    structure,
    optimizer,
    rate,
    _forward(config),
    loss_weights=dataclasses.asdict(config.loss),
    ema_limit=config.ema,
    seed=config.seed,
    execution=Execution(remats(config, platform)[0], config.scan, attention, tiled=platform == 'tpu'),
    dtype=jnp.dtype(config.dtype),
    accumulate=config.accumulate,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
  )
  return Program(mesh, structure, state, _batch(config, model, mesh), step, optimizer, model, config.seed)


def remats(config: ResolvedRunConfig, platform: str) -> tuple[str, ...]:
  """What `config.remat` allows on a platform, fastest first; `build` takes the first."""
  return automatic(platform) if config.remat == AUTO else (config.remat,)


def _forward(config: ResolvedRunConfig) -> Callable:
  match config.task:
    case 'text':
      return text_forward
    case 'prompts':
      return functools.partial(prompt_forward, rounds=config.rounds)
    case _:
      return functools.partial(interactive_forward, rounds=config.rounds, first=config.first_prompts)


def attention_for(name: str, model: DitSamConfig, platform: str, dtype) -> str:
  """Selects the attention implementation of all blocks for a platform ('cpu', 'tpu', 'gpu') and an array type.

  Raises:
    UserError: `name`, the value of config.attention, is unsupported there.
  """
  encoder = model.image_encoder
  sides = {encoder.window(block) or model.grid for block in range(encoder.depth)}
  shapes = [(dtype, encoder.width // encoder.heads, side**2 + model.max_text_tokens, 2 * side) for side in sides]
  if name == 'auto':
    return fastest(platform, *shapes)
  for problem in filter(None, (why_not(name, platform, *shape) for shape in shapes)):
    raise UserError(f"config.attention is {name!r}: {problem}; 'auto' selects the fastest supported one")
  return name


def _batch(config: ResolvedRunConfig, model: DitSamConfig, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the pipeline's batches, see `train_batches` and `prompt_batches`."""
  rows, size, tokens = config.data.batch_size, model.image_size, model.max_text_tokens
  count = config.data.objects_per_image
  shapes = {'image': ((size, size, 3), jnp.float32)}
  if reads_text(config.task):
    shapes |= {
      'mask': ((size, size), jnp.uint8),
      'token_ids': ((tokens,), jnp.int32),
      'token_mask': ((tokens,), jnp.int32),
    }
  else:
    shapes |= {
      'points': ((count, 2, 2), jnp.float32),
      'labels': ((count, 2), jnp.int32),
      'masks': ((count, size, size), jnp.uint8),
    }
  place = sharding.rows_sharding(mesh)
  return {name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=place) for name, (shape, dtype) in shapes.items()}


def _identity(weights: Any) -> Any:
  """A named function, because JAX would recompile a lambda every time."""
  return weights


def _fresh_weights(model: DitSamConfig, seed: int, places: Weights) -> Weights:
  """Draws weights outside a program, which would take longer to compile than the training step."""
  drawn = weights_of(DitSam(model, rngs=nnx.Rngs(seed)))
  return {name: arrays.placed(np.asarray(drawn[name][...]), place) for name, place in places.items()}
