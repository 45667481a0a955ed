"""Train state and train step: pure functions of (state, batch)."""

import functools
import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ditsam_jax.config.freeze import FREEZE_GROUPS
from ditsam_jax.errors import UserError
from ditsam_jax.fields import shown
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.image_encoder import BLOCKS
from ditsam_jax.models.weights import Structure, Weights, is_position
from ditsam_jax.parallel.weights import at_use
from ditsam_jax.training.loss import mask_loss
from ditsam_jax.training.optimizer import ema_decay

Batch = dict[str, jax.Array]


class TrainState(NamedTuple):
  """Everything that a step updates, and the frozen weights."""

  step: jax.Array  # batches seen, int32 []
  params: Weights  # trained parameters
  ema: Weights  # their exponential moving average, used for evaluation
  opt_state: Any
  frozen: Weights  # frozen parameters and buffers
  skipped: jax.Array  # skipped updates, int32 [2]: in total, and consecutively up to now


def trained_of(parameters: set[str], frozen: Mapping[str, re.Pattern] = MappingProxyType({})) -> set[str]:
  """Returns the names of the trained parameters: all names that none of the patterns in `frozen` matches.

  Raises:
    UserError: a pattern matches no parameter.
  """
  trained = parameters
  for part, pattern in frozen.items():
    matched = {name for name in parameters if pattern.match(name)}
    if not matched:
      raise UserError(
        f'config.freeze: {shown(part)} matches no parameter; name one of {", ".join(FREEZE_GROUPS)}, or a regular '
        f'expression over paths such as image_encoder.blocks.0.attn.qkv.kernel'
      )
    trained = trained - matched
  return trained


def fresh_state(weights: Weights, trained: set[str], optimizer: optax.GradientTransformation) -> TrainState:
  """Creates the state before the first update, as a pure function; optimiser state covers trained weights only."""
  params = {name: array for name, array in weights.items() if name in trained}
  rest = {name: array for name, array in weights.items() if name not in trained}
  return TrainState(
    jnp.zeros((), jnp.int32),
    params,
    jax.tree.map(jnp.copy, params),
    optimizer.init(params),
    rest,
    jnp.zeros(2, jnp.int32),
  )


def text_forward(model: DitSam, batch: Batch, loss_weights: dict[str, float], rngs: nnx.Rngs, execution: Execution):
  """Loss for one sentence per image. batch: image [B,S,S,3], token_ids and token_mask [B,T], mask [B,S,S]."""
  out = model(batch['image'], batch['token_ids'], batch['token_mask'], rngs=rngs, execution=execution)
  return mask_loss(out.logits, batch['mask'], out.iou, **loss_weights)


def make_train_step(
  structure: Structure[DitSam],
  optimizer: optax.GradientTransformation,
  rate: optax.Schedule,
  forward: Callable,
  *,
  loss_weights: dict[str, float],
  ema_limit: float,
  seed: int,
  execution: Execution = Execution(),
  dtype: jnp.dtype | None = None,
  accumulate: int = 1,
  out_shardings: Any = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """Creates the jitted update. Random streams of step n depend only on (seed, n), so a resumed run repeats them.

  Args:
    structure: the model's structure.
    optimizer: the optimiser.
    rate: the learning rate schedule, for the log.
    forward: `text_forward`, or the forward function of `prompt_rounds` or `interactive`.
    loss_weights: weights of the losses, see mask_loss.
    ema_limit: upper limit of the moving average's decay.
    seed: seed of dropout.
    execution: how the image encoder's blocks run.
    dtype: compute type. The model's weights are cast to it; parameters, moments, moving average and loss are not. None
      computes in the parameters' type.
    accumulate: number of sequential micro-batches; their gradients are averaged.
    out_shardings: shardings of the state and the metrics; None leaves them to XLA.
  """

  def loss_function(params: Weights, frozen: Weights, batch: Batch, key: jax.Array):
    weights = params | frozen
    if dtype is not None:
      weights = {name: array if is_position(name) else array.astype(dtype) for name, array in weights.items()}
    # Blocks gather their own weights, one at a time.
    blocks = {name: array for name, array in weights.items() if name.startswith(f'{BLOCKS}.')}
    weights = blocks | at_use({name: array for name, array in weights.items() if name not in blocks})
    rngs = nnx.Rngs(dropout=key)  # NNX's counters live in this trace only
    return forward(structure.module(weights), batch, loss_weights, rngs, execution)

  def gradient(*args):
    grads, metrics = jax.grad(loss_function, has_aux=True)(*args)
    if out_shardings is not None:  # reduce-scatter instead of all-reduce
      grads = jax.lax.with_sharding_constraint(grads, out_shardings[0].params)
    return grads, metrics

  def step(state: TrainState, batch: Batch):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if accumulate == 1:
      grads, metrics = gradient(state.params, state.frozen, batch, key)
    else:
      parts = {name: _micro_batches(array, accumulate) for name, array in batch.items()}
      grads, metrics = _mean_gradient(functools.partial(gradient, state.params, state.frozen), parts, key, accumulate)
    updates_done = state.step - state.skipped[0]

    def update(state: TrainState, grads: Weights) -> TrainState:
      updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
      params = optax.apply_updates(state.params, updates)
      decay = ema_decay(updates_done, ema_limit)
      ema = jax.tree.map(lambda average, new: average * decay + new * (1 - decay), state.ema, params)
      return state._replace(params=params, ema=ema, opt_state=opt_state)

    metrics |= {'learning_rate': rate(updates_done), 'grad_norm': optax.tree.norm(grads)}
    state = update_if_finite(update, state, grads, metrics['loss'], metrics['grad_norm'])
    metrics |= {'skipped': state.skipped[0], 'skipped_in_a_row': state.skipped[1]}
    return state, metrics

  return jax.jit(step, donate_argnums=0, out_shardings=out_shardings)


def _micro_batches(array: jax.Array, parts: int) -> jax.Array:
  """[B, ...] -> [parts, B/parts, ...] with interleaved rows, so each device's rows stay on that device."""
  return array.reshape(-1, parts, *array.shape[1:]).swapaxes(0, 1)


def _mean_gradient(gradient: Callable, parts: Batch, key: jax.Array, count: int):
  """Averages gradients and metrics of `gradient(part, key)` over the first axis of `parts`, one part at a time."""

  def add(sums, part):
    index, batch = part
    return jax.tree.map(jnp.add, sums, gradient(batch, jax.random.fold_in(key, index))), None

  one = {name: jax.ShapeDtypeStruct(array.shape[1:], array.dtype) for name, array in parts.items()}
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, one, key))
  sums, _ = jax.lax.scan(add, zeros, (jnp.arange(count), parts))
  return jax.tree.map(lambda total: total / count, sums)


def update_if_finite(
  update: Callable[[TrainState, Weights], TrainState],
  state: TrainState,
  grads: Weights,
  loss: jax.Array,
  grad_norm: jax.Array,
) -> TrainState:
  """Applies `update(state, grads)`, or skips it if the loss or a gradient is not finite; either way, advances the step.

  A branch needs no extra memory; selecting elementwise took two more copies of the parameters on CPUs.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)  # the norm is finite only if all elements are
  frozen, state = state.frozen, state._replace(frozen={})
  state = jax.lax.cond(finite, update, lambda state, grads: state, state, grads)
  skipped = jnp.where(finite, state.skipped * jnp.asarray([1, 0], jnp.int32), state.skipped + 1)
  return state._replace(step=state.step + 1, skipped=skipped, frozen=frozen)


def averaged_model(structure: Structure[DitSam], state: TrainState) -> DitSam:
  """Returns the model with averaged weights, in eval mode."""
  model = structure.module(state.ema, state.frozen)
  model.eval()
  return model
