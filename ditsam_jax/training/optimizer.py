"""The release's optimiser as optax transformations: Adam, gradient clipping, warm-up and cosine schedule, EMA."""

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from ditsam_jax.config.run import ResolvedOptimizerConfig


def schedule(peak: float, *, start: float, end: float, warmup_steps: int, total_steps: int) -> optax.Schedule:
  """Linear warm-up from `start` to `peak`, then cosine decay to `end`; the first update uses the rate at step 0."""

  def rate(step):
    step = jnp.asarray(step, jnp.float32)
    warm = start + (peak - start) * step / max(warmup_steps, 1)
    progress = jnp.clip((step - warmup_steps) / max(total_steps - warmup_steps, 1), 0.0, 1.0)
    cosine = end + 0.5 * (peak - end) * (1 + jnp.cos(jnp.pi * progress))
    return jnp.where(step < warmup_steps, warm, cosine)

  return rate


def clip_by_global_norm(limit: float) -> optax.GradientTransformation:
  """Like torch.nn.utils.clip_grad_norm_: scales by limit / (norm + 1e-6), at most 1."""

  def update(updates, state, params=None):
    del params
    factor = jnp.minimum(1.0, limit / (optax.tree.norm(updates) + 1e-6))
    return jax.tree.map(lambda g: g * factor, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def make_optimizer(
  config: ResolvedOptimizerConfig, total_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  """Creates the optimiser and the learning-rate schedule of `config.optimizer`."""
  rate = schedule(
    config.learning_rate,
    start=config.warmup_start,
    end=config.min_learning_rate,
    warmup_steps=config.warmup_steps,
    total_steps=total_steps,
  )
  parts = [clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  adam = optax.scale_by_adam(config.beta1, config.beta2, config.epsilon)
  parts.append(adam if config.name == 'adam' else _muon(adam))
  if config.weight_decay:
    parts.append(optax.add_decayed_weights(config.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)))
  return optax.chain(*parts, optax.scale_by_learning_rate(rate)), rate


def _muon(adam: optax.GradientTransformation) -> optax.GradientTransformation:
  """Muon (orthogonalised momentum) for the transformers' matrices, Adam for everything else.

  Matrix updates are scaled to the typical root mean square of Adam's (0.2), so one learning rate suits both.
  """

  def label(params):
    return {name: 'muon' if x.ndim == 2 and name.endswith('kernel') else 'adam' for name, x in params.items()}

  def matrices(params):
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

  muon = optax.chain(
    optax.contrib.scale_by_muon(weight_dimension_numbers=matrices),
    optax.stateless(lambda updates, _: jax.tree.map(lambda u: u * 0.2 * max(u.shape) ** 0.5, updates)),
  )
  return optax.multi_transform({'muon': muon, 'adam': adam}, label)


def ema_decay(updates_done: jax.Array, limit: float) -> jax.Array:
  """EMA decay min(limit, (1 + n) / (10 + n)), where n is the number of earlier updates."""
  n = updates_done.astype(jnp.float32)
  return jnp.minimum(limit, (1 + n) / (10 + n))
