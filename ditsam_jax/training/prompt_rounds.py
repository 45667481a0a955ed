"""SAM's training with visual prompts: a first prompt, then rounds of corrections (arXiv 2304.02643, appendix A).

In the first round the prompt is one click or one box, which may be ambiguous: the model predicts three masks, and the
one with the lowest loss is trained. Later rounds add a click where the last mask was wrong, and that mask as a prompt,
and train the single mask. The last of three or more rounds adds the mask only. Unlike in SAM, the single mask is
trained in the first round too, so it also works with one click.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models.ditsam import DitSam, Output
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.training.drawn_prompts import corrective_clicks, with_click
from ditsam_jax.training.loss import lowest_mask_loss, mask_loss

# (points [N, P, 2], labels [N, P], mask prompts [N, 4h, 4w] or None, multimask as in DitSam.decode) -> Output
Decode = Callable[[jax.Array, jax.Array, jax.Array | None, bool | None], Output]


def prompt_forward(
  model: DitSam,
  batch: dict[str, jax.Array],
  loss_weights: dict[str, float],
  rngs: nnx.Rngs | None,
  execution: Execution,
  rounds: int = 1,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss of K visual prompts per image, which share its embedding: the mean over the rounds' losses.

  Args:
    model: the model.
    batch: image [B,S,S,3], points [B,K,P,2], labels [B,K,P], masks [B,K,S,S].
    loss_weights: see `mask_loss`.
    rngs: 'dropout', which also draws the corrective clicks; None for a single round without dropout.
    execution: how the image encoder's blocks run.
    rounds: number of rounds; 1 for first prompts only.

  Returns:
    The loss, and {'loss', 'batch_iou', 'multimask_iou', 'corrected_iou'}: the mean IoU of the first round's single
    mask, of the mask with the highest predicted IoU among its three, and of the last round's mask.
  """
  count = batch['labels'].shape[1]
  size = batch['image'].shape[1], batch['image'].shape[2]
  embedding = model.image_encoder(batch['image'], rngs=rngs, execution=execution)
  embedding = jnp.repeat(embedding, count, axis=0)
  points, labels, targets = (_flat(batch[name]) for name in ('points', 'labels', 'masks'))

  def decode(points: jax.Array, labels: jax.Array, masks: jax.Array | None, multimask: bool | None):
    sparse = model.prompt_encoder.embed_points(points, labels, size)
    return model.decode(embedding, [sparse], masks, size, multimask, sparse_mask=labels != ABSENT)

  return rounds_loss(decode, points, labels, targets, loss_weights, rngs, rounds)


def rounds_loss(
  decode: Decode,
  points: jax.Array,
  labels: jax.Array,
  targets: jax.Array,
  loss_weights: dict[str, float],
  rngs: nnx.Rngs | None,
  rounds: int,
  clear: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The mean over the losses of all rounds, from first prompts.

  Args:
    decode: decodes prompts.
    points: (x, y) f32 [N, 2, 2] of the first prompts: a click and SAM's padding, or a box's corners.
    labels: int32 [N, 2]; ABSENT for no points.
    targets: [N, S, S].
    loss_weights, rngs, rounds: see `prompt_forward`.
    clear: bool [N], True for unambiguous first prompts: corrections start from the single mask, not from the best of
      three. None if all may be ambiguous.

  Returns:
    The loss and the metrics of `prompt_forward`.
  """
  out = decode(points, labels, None, None)
  single, first = mask_loss(out.logits[:, 0], targets, out.iou[:, 0], **loss_weights)
  lowest, multimask_iou = lowest_mask_loss(out.logits[:, 1:], targets, out.iou[:, 1:], **loss_weights)
  losses, iou = [single, lowest], first['batch_iou']
  best = 1 + out.iou[:, 1:].argmax(1)
  best = (best if clear is None else jnp.where(clear, 0, best))[:, None, None, None]
  mask, logits = (jnp.take_along_axis(array, best, axis=1)[:, 0] for array in (out.low_res_logits, out.logits))
  for number in range(1, rounds):
    if number < rounds - 1 or rounds == 2:
      assert rngs is not None  # clicks are drawn
      click, label = corrective_clicks(rngs.dropout(), logits > 0, targets > 0)
      points, labels = with_click(points, labels, click, label)
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


def _flat(array: jax.Array) -> jax.Array:
  """[B, K, ...] -> [B * K, ...]."""
  return array.reshape(-1, *array.shape[2:])
