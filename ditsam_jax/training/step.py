"""Train state and train step: pure functions of (state, batch)."""

from collections.abc import Callable
import re
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from ditsam_jax.command_line import UserError
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import dotted, is_weight, weights_of
from ditsam_jax.training.loss import mask_loss
from ditsam_jax.training.optimizer import FREEZE_GROUPS, ema_decay

Batch = dict[str, jax.Array]


Weights = dict[str, jax.Array]  # by dotted path: plain dicts cost the dispatch of a step nothing, NNX states do


class TrainState(NamedTuple):
  """Everything that a step changes, and the frozen weights."""
  step: jax.Array  # batches seen, int32 []
  params: Weights  # trained
  ema: Weights  # their moving average, used by evaluation
  opt_state: Any
  frozen: Weights  # frozen parameters and buffers
  skipped: jax.Array  # updates left out, int32 [2]: of all steps, of the last ones without a break


class Structure:
  """A model without its weights: `structure.model(weights, ...)` puts them together again."""

  def __init__(self, model: DitSam):
    self._graph, weights, self._streams = nnx.split(model, is_weight, ...)
    self._paths = {dotted(path): (path, variable) for path, variable in nnx.to_flat_state(weights)}

  def model(self, *weights: Weights) -> DitSam:
    """The model with these weights (together all of them)."""
    merged = {name: array for part in weights for name, array in part.items()}
    state = nnx.from_flat_state([(path, variable.replace(merged[name]))
                                 for name, (path, variable) in self._paths.items()])
    return nnx.merge(self._graph, state, self._streams)


def make_state(model: DitSam, optimizer: optax.GradientTransformation,
               frozen: re.Pattern | None = None) -> tuple[Structure, TrainState]:
  """Splits a model into its structure and a state.

  Args:
    model: in training mode.
    optimizer: holds state for the trained parameters only.
    frozen: pattern of parameter paths that are not trained, or None.

  Raises:
    UserError: the pattern matches no parameter.
  """
  params, rest = {}, {}
  for name, variable in weights_of(model).items():
    trained = isinstance(variable, nnx.Param) and not (frozen and frozen.match(name))
    (params if trained else rest)[name] = variable[...]
  if frozen and not any(frozen.match(name) for name in rest):
    raise UserError(f'config.freeze matches no parameter; name one of {", ".join(FREEZE_GROUPS)}, or a regular '
                    f'expression over paths such as image_encoder.blocks.0.attn.qkv.kernel')
  ema = jax.tree.map(jnp.copy, params)
  return Structure(model), TrainState(jnp.zeros((), jnp.int32), params, ema, optimizer.init(params), rest,
                                      jnp.zeros(2, jnp.int32))


def text_forward(model: DitSam, batch: Batch, loss_weights: dict[str, float], rngs: nnx.Rngs):
  """Loss of one sentence an image. batch: image [B,S,S,3], token_ids and token_mask [B,T], mask [B,S,S]."""
  out = model(batch['image'], batch['token_ids'], batch['token_mask'], rngs=rngs)
  return mask_loss(out.logits, batch['mask'], out.iou, **loss_weights)


def prompt_forward(model: DitSam, batch: Batch, loss_weights: dict[str, float], rngs: nnx.Rngs):
  """Loss of K visual prompts an image, which share its embedding.

  batch: image [B,S,S,3], points [B,K,P,2], labels [B,K,P], masks [B,K,S,S].
  """
  batch_size, count = batch['labels'].shape[:2]
  images = batch['image']
  embedding = jnp.repeat(model.image_encoder(images, rngs=rngs), count, axis=0)
  flat = {name: batch[name].reshape(batch_size * count, *batch[name].shape[2:]) for name in ('points', 'labels', 'masks')}
  sparse = model.prompt_encoder.embed_points(flat['points'], flat['labels'], images.shape[1:3])
  out = model.decode(embedding, [sparse], None, images.shape[1:3])
  return mask_loss(out.logits, flat['masks'], out.iou, **loss_weights)


def make_train_step(structure: Structure, optimizer: optax.GradientTransformation, rate: optax.Schedule,
                    forward: Callable, *, loss_weights: dict[str, float], ema_limit: float,
                    seed: int) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
  """The jitted update. The random streams of step n depend on (seed, n) alone, so a resumed run repeats them."""
  def step(state: TrainState, batch: Batch):
    def loss_function(params):
      rngs = nnx.Rngs(dropout=jax.random.fold_in(jax.random.key(seed), state.step))  # NNX counts in this trace only
      return forward(structure.model(params, state.frozen), batch, loss_weights, rngs)

    grads, metrics = jax.grad(loss_function, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    updates_done = state.step - state.skipped[0]
    decay = ema_decay(updates_done, ema_limit)
    ema = jax.tree.map(lambda average, new: average * decay + new * (1 - decay), state.ema, params)
    metrics |= {'learning_rate': rate(updates_done), 'grad_norm': optax.tree.norm(grads)}
    new = TrainState(state.step + 1, params, ema, opt_state, state.frozen, state.skipped)
    state = keep_if_finite(state, new, metrics['loss'], metrics['grad_norm'])
    metrics |= {'skipped': state.skipped[0], 'skipped_in_a_row': state.skipped[1]}
    return state, metrics

  return jax.jit(step, donate_argnums=0)


def keep_if_finite(old: TrainState, new: TrainState, loss: jax.Array, grad_norm: jax.Array) -> TrainState:
  """The new state, or the old one where loss or gradient are not finite; steps go on, and the left-out update counts.

  The choice is made element by element where the update is computed, so it takes no memory of its own.
  """
  finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)  # the norm is not if any element is not
  kept = jax.tree.map(lambda before, after: jnp.where(finite, after, before),
                      (old.params, old.ema, old.opt_state), (new.params, new.ema, new.opt_state))
  skipped = jnp.where(finite, old.skipped * jnp.asarray([1, 0]), old.skipped + 1)
  return TrainState(new.step, *kept, new.frozen, skipped)


def averaged_model(structure: Structure, state: TrainState) -> DitSam:
  """The model with averaged weights, in evaluation mode."""
  model = structure.model(state.ema, state.frozen)
  model.eval()
  return model
