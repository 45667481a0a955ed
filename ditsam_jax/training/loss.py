"""Losses of predicted masks, all in f32."""

import jax
import jax.numpy as jnp


def mask_loss(
  logits: jax.Array,
  target: jax.Array,
  predicted_iou: jax.Array,
  *,
  bce: float = 1.0,
  dice: float = 0.0,
  iou: float = 0.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Weighted sum of the DIT release's loss (BCE) and SAM's losses (Dice, predicted IoU).

  Args:
    logits: [B, S, S].
    target: 0/1 [B, S, S], any dtype.
    predicted_iou: [B], the model's estimate.
    bce: weight of the mean binary cross-entropy over all pixels, padding included.
    dice: weight of the dice loss with SAM's and DETR's +1 smoothing (arXiv 2304.02643, appendix A).
    iou: weight of the squared error of the predicted IoU against the IoU of the mask logits > 0.

  Returns:
    The loss, and metrics for the log: 'loss' and 'batch_iou', the mean IoU of this batch at threshold 0.5.
  """
  target = target.astype(logits.dtype)
  hit, area, union = _overlap(logits > 0, target)
  actual = hit / jnp.maximum(union, 1.0)
  loss = bce * (jax.nn.softplus(logits) - logits * target).mean()
  if dice:
    probability = jax.nn.sigmoid(logits)
    numerator = 2 * (probability * target).sum((1, 2)) + 1
    loss += dice * (1 - numerator / (probability.sum((1, 2)) + area + 1)).mean()
  if iou:
    loss += iou * jnp.square(predicted_iou - jax.lax.stop_gradient(actual)).mean()
  return loss, {'loss': loss, 'batch_iou': actual.mean()}


def lowest_mask_loss(
  logits: jax.Array,
  target: jax.Array,
  predicted_iou: jax.Array,
  *,
  bce: float = 1.0,
  dice: float = 0.0,
  iou: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """`mask_loss` for M masks per target; only the mask with the lowest loss is trained (SAM, appendix A).

  The predicted IoU of all masks is trained, so that it ranks them.

  Args:
    logits: [B, M, S, S].
    target: 0/1 [B, S, S], any dtype.
    predicted_iou: [B, M].
    bce, dice, iou: weights, see `mask_loss`.

  Returns:
    The loss, and the mean IoU of the masks with the highest predicted IoU.
  """
  target = target.astype(logits.dtype)[:, None]
  hit, area, union = _overlap(logits > 0, target)
  actual = jax.lax.stop_gradient(hit / jnp.maximum(union, 1.0))
  losses = bce * (jax.nn.softplus(logits) - logits * target).mean((-2, -1))
  if dice:
    probability = jax.nn.sigmoid(logits)
    numerator = 2 * (probability * target).sum((-2, -1)) + 1
    losses += dice * (1 - numerator / (probability.sum((-2, -1)) + area + 1))
  loss = losses.min(1).mean()
  if iou:
    loss += iou * jnp.square(predicted_iou - actual).mean()
  chosen = jnp.take_along_axis(actual, predicted_iou.argmax(1)[:, None], axis=1)
  return loss, chosen.mean()


def _overlap(mask: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Returns intersection, target area and union in pixels, [...], of masks [..., S, S]."""
  mask = mask.astype(target.dtype)
  hit, area = (mask * target).sum((-2, -1)), target.sum((-2, -1))
  return hit, area, mask.sum((-2, -1)) + area - hit
