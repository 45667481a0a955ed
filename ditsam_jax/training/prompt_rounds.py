"""SAM's training with visual prompts: a first prompt, then rounds of corrections (arXiv 2304.02643, appendix A).

In the first round the prompt is one click or one box, which may mean several things: three masks answer it, and the one
with the lowest loss learns. Later rounds add a click where the last mask was wrong, and that mask; a single mask answers.
The last of three or more rounds gets the mask alone, without another click. Unlike SAM, the single mask learns in the
first round too, so it is good for one click as well.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT, NEGATIVE, POSITIVE
from ditsam_jax.training.loss import lowest_mask_loss, mask_loss


def prompt_forward(
  model: DitSam,
  batch: dict[str, jax.Array],
  loss_weights: dict[str, float],
  rngs: nnx.Rngs | None,
  execution: Execution,
  rounds: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss of K visual prompts an image, which share its embedding: the mean over the rounds' losses.

  Args:
    model: the model.
    batch: image [B,S,S,3], points [B,K,P,2], labels [B,K,P], masks [B,K,S,S].
    loss_weights: see `mask_loss`.
    rngs: 'dropout', which also draws the corrective clicks; None for a single round without dropout.
    execution: how the image encoder's blocks run.
    rounds: of prompts; 1 leaves the first.

  Returns:
    The loss, and {'loss', 'batch_iou', 'multimask_iou', 'corrected_iou'}: the mean IoU of the first round's single mask,
    of the one of its three masks that the model believes in most, and of the last round's mask.
  """
  count = batch['labels'].shape[1]
  size = batch['image'].shape[1], batch['image'].shape[2]
  embedding = model.image_encoder(batch['image'], rngs=rngs, execution=execution)
  embedding = jnp.repeat(embedding, count, axis=0)
  points, labels, targets = (_flat(batch[name]) for name in ('points', 'labels', 'masks'))

  def decode(points: jax.Array, labels: jax.Array, masks: jax.Array | None, multimask: bool | None):
    sparse = model.prompt_encoder.embed_points(points, labels, size)
    return model.decode(embedding, [sparse], masks, size, multimask, sparse_mask=labels != ABSENT)

  out = decode(points, labels, None, None)
  single, first = mask_loss(out.logits[:, 0], targets, out.iou[:, 0], **loss_weights)
  lowest, multimask_iou = lowest_mask_loss(out.logits[:, 1:], targets, out.iou[:, 1:], **loss_weights)
  losses, iou = [single, lowest], first['batch_iou']
  best = 1 + out.iou[:, 1:].argmax(1)[:, None, None, None]
  mask, logits = (jnp.take_along_axis(array, best, axis=1)[:, 0] for array in (out.low_res_logits, out.logits))
  for number in range(1, rounds):
    if number < rounds - 1 or rounds == 2:
      assert rngs is not None  # clicks are drawn
      click, label = corrective_clicks(rngs.dropout(), logits > 0, targets > 0)
      points, labels = jnp.concatenate([points, click], 1), jnp.concatenate([labels, label], 1)
    out = decode(points, labels, jax.lax.stop_gradient(mask), False)
    loss, metrics = mask_loss(out.logits, targets, out.iou, **loss_weights)
    losses.append(loss)
    iou, mask, logits = metrics['batch_iou'], out.low_res_logits, out.logits
  loss = jnp.mean(jnp.stack(losses))
  return loss, {
    'loss': loss,
    'batch_iou': first['batch_iou'],
    'multimask_iou': multimask_iou,
    'corrected_iou': iou,
  }


def corrective_clicks(key: jax.Array, masks: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Draws a click for each mask, uniformly among its wrong pixels, or among all pixels if none is wrong.

  Args:
    key: random key.
    masks: predicted masks, bool [N, h, w].
    targets: true masks, bool [N, h, w].

  Returns:
    Points (x, y) f32 [N, 1, 2] and labels int32 [N, 1], positive for pixels of the target.
  """
  wrong = masks != targets
  wrong |= ~wrong.any((1, 2), keepdims=True)
  rows = wrong.sum(2).cumsum(1)  # wrong pixels up to the end of each row
  total = rows[:, -1:]
  rank = jnp.floor(jax.random.uniform(key, total.shape) * total).astype(total.dtype)
  rank = jnp.minimum(rank, total - 1)
  y = (rows <= rank).sum(1, keepdims=True)  # the row of the drawn pixel
  row = jnp.take_along_axis(wrong, y[..., None], axis=1)[:, 0]  # [N, w]
  before = jnp.take_along_axis(rows, y, axis=1) - row.sum(1, keepdims=True)
  x = (row.cumsum(1) <= rank - before).sum(1, keepdims=True)
  hit = jnp.take_along_axis(jnp.take_along_axis(targets, y[..., None], axis=1)[:, 0], x, axis=1)
  return jnp.stack([x, y], -1).astype(jnp.float32), jnp.where(hit, POSITIVE, NEGATIVE).astype(jnp.int32)


def _flat(array: jax.Array) -> jax.Array:
  """[B, K, ...] -> [B * K, ...]."""
  return array.reshape(-1, *array.shape[2:])
