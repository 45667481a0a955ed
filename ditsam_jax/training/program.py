"""The compiled train step of a run, the shapes and shardings of its arguments, and its first state.

Nothing is computed before `initial_state`: the same program can be compiled for a pod that is not there.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from ditsam_jax.config.run import ResolvedRunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.weights import Structure, Weights, weights_of
from ditsam_jax.ops.attention.choice import fastest, why_not
from ditsam_jax.parallel import sharding
from ditsam_jax.storage import saved_model
from ditsam_jax.training.optimizer import freeze_pattern, make_optimizer
from ditsam_jax.training.prompt_rounds import prompt_forward
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
  """See the module."""

  mesh: Mesh
  structure: Structure
  state: TrainState  # shapes, types and shardings
  batch: dict[str, jax.ShapeDtypeStruct]  # of a whole batch over all hosts
  _step: Any
  _optimizer: optax.GradientTransformation
  _model: DitSamConfig
  _seed: int

  def step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; `state` is given away."""
    with jax.set_mesh(self.mesh):
      return self._step(state, batch)

  def assemble(self, rows: dict[str, np.ndarray]) -> Batch:
    """The batch over all hosts, of the rows that this host brings (`sharding.rows_of_this_host`)."""
    return {
      name: jax.make_array_from_process_local_data(self.batch[name].sharding, array, self.batch[name].shape)
      for name, array in rows.items()
    }

  def lower(self) -> jax.stages.Lowered:
    """The step, ready to be compiled, without any array."""
    with jax.set_mesh(self.mesh):
      return self._step.lower(self.state, self.batch)

  def initial_state(self, init_from: str = '') -> tuple[TrainState, list[str]]:
    """The state before the first update, every array made or read where it belongs.

    Args:
      init_from: a saved model whose weights are taken where it has them.

    Returns:
      The state, and the names of the weights that are fresh.

    Raises:
      UserError: `init_from` cannot be read, or does not fit.
    """
    expected = self.state.params | self.state.frozen
    weights = saved_model.read_start(init_from, expected) if init_from else {}
    fresh = {name: array.sharding for name, array in expected.items() if name not in weights}
    if fresh:  # in one program: what is not asked for is never drawn
      weights |= jax.jit(
        functools.partial(_fresh_weights, self._model, self._seed, tuple(fresh)), out_shardings=fresh
      )()
    make = functools.partial(fresh_state, trained=set(self.state.params), optimizer=self._optimizer)
    out_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
    return jax.jit(make, out_shardings=out_shardings, donate_argnums=0)(weights), list(fresh)

  def averaged_model(self, state: TrainState) -> DitSam:
    """The model with averaged weights in evaluation mode, whole on one device of every host; all hosts must call it."""
    everywhere = jax.jit(_same, out_shardings=sharding.replicated(self.mesh))
    ema, frozen = jax.tree.map(lambda array: array.addressable_data(0), everywhere((state.ema, state.frozen)))
    return averaged_model(self.structure, state._replace(ema=ema, frozen=frozen))


def build(config: ResolvedRunConfig, model: DitSamConfig, mesh: Mesh) -> Program:
  """The program of a config with all lengths (config/lengths.py) on a mesh, whose devices need not be there.

  Raises:
    UserError: the mesh does not divide the batch or the heads; `config.freeze` matches nothing; `config.attention`
      cannot run there.
  """
  attention = attention_for(config.attention, model, mesh.devices.flat[0].platform, jnp.dtype(config.dtype))
  sharding.check_divides(mesh, model.heads, config.data.batch_size, config.accumulate)
  abstract = nnx.eval_shape(lambda: DitSam(model, rngs=nnx.Rngs(0)))
  saved_model.fill_streams(abstract)
  abstract.train()
  structure = Structure(abstract)
  weights = {
    name: jax.ShapeDtypeStruct(variable.shape, variable.dtype) for name, variable in weights_of(abstract).items()
  }
  optimizer, rate = make_optimizer(config.optimizer, config.total_steps)
  trained = trained_of(structure.parameters, freeze_pattern(config.freeze))
  state = jax.eval_shape(functools.partial(fresh_state, trained=trained, optimizer=optimizer), weights)
  shardings = sharding.state_shardings(state, weights, mesh)
  step = make_train_step(
    structure,
    optimizer,
    rate,
    text_forward if config.task == 'text' else functools.partial(prompt_forward, rounds=config.rounds),
    loss_weights=dataclasses.asdict(config.loss),
    ema_limit=config.ema,
    seed=config.seed,
    execution=Execution(config.remat, config.scan, attention),
    dtype=jnp.dtype(config.dtype),
    accumulate=config.accumulate,
    out_shardings=(shardings, sharding.replicated(mesh)),
  )
  state = jax.tree.map(
    lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state, shardings
  )
  return Program(mesh, structure, state, _batch(config, model, mesh), step, optimizer, model, config.seed)


def attention_for(name: str, model: DitSamConfig, platform: str, dtype) -> str:
  """The implementation of attention that all blocks take on a platform ('cpu', 'tpu', 'gpu') on arrays of a type.

  Raises:
    UserError: `name`, the value of config.attention, is one that cannot.
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
  """Shapes of a batch as the pipeline makes them, see `train_batches` and `prompt_batches`."""
  rows, size, tokens = config.data.batch_size, model.image_size, model.max_text_tokens
  count = config.data.objects_per_image
  shapes = {'image': ((size, size, 3), jnp.float32)}
  if config.task == 'text':
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


def _same(weights: Any) -> Any:
  """A function with a name: JAX compiles it once, and a lambda every time."""
  return weights


def _fresh_weights(model: DitSamConfig, seed: int, names: tuple[str, ...]) -> Weights:
  weights = weights_of(DitSam(model, rngs=nnx.Rngs(seed)))
  return {name: weights[name][...] for name in names}
