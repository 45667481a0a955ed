"""Training with sentences and clicks in one prompt: a first prompt, then rounds of corrections as in `prompt_rounds`.

The first prompt is a sentence, a click, a box, or a sentence with either. Clicks and boxes are drawn from the target's
mask on the device, so batches are the same as in training with text. Corrections start from the best of three masks for
a prompt without a sentence, which may be ambiguous, and from the single mask for a sentence, as in prediction.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.training.drawn_prompts import first_prompts
from ditsam_jax.training.prompt_rounds import rounds_loss


def interactive_forward(
  model: DitSam,
  batch: dict[str, jax.Array],
  loss_weights: dict[str, float],
  rngs: nnx.Rngs,
  execution: Execution,
  rounds: int,
  first: FirstPromptConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Loss of one target per image, with or without its sentence: the mean over the rounds' losses.

  Args:
    model: the model.
    batch: image [B,S,S,3], token_ids and token_mask [B,T], mask [B,S,S]; B is a multiple of `first.without_text[1]`.
    loss_weights: see `mask_loss`.
    rngs: 'dropout', which also draws prompts.
    execution: how the image encoder's blocks run.
    rounds: number of rounds; 1 for first prompts only.
    first: the shares of first prompts.

  Returns:
    The loss, and the metrics of `prompt_forward`.
  """
  without, group = first.without_text
  size = batch['image'].shape[1], batch['image'].shape[2]
  (images, others), (ids, _), (mask, _) = (
    _parts(batch[name], without, group) for name in ('image', 'token_ids', 'token_mask')
  )
  targets = [part > 0 for part in _parts(batch['mask'], without, group)]
  embeddings, tokens = [], []
  if len(images):
    assert model.text_encoder is not None and model.text_proj is not None  # the config is checked
    text = model.text_encoder(ids, mask, rngs=rngs)
    embeddings.append(model.image_encoder(images, text, rngs=rngs, execution=execution))
    tokens.append(model.text_proj(text))
  if len(others):
    embeddings.append(model.image_encoder(others, rngs=rngs, execution=execution))
    tokens.append(jnp.zeros((len(others), ids.shape[1], model.config.mask_decoder.width), embeddings[0].dtype))
  reads = [jnp.full(len(part), with_text) for part, with_text in ((images, True), (others, False))]
  shares = (first.text, first.text_click, first.text_box), (0.0, first.click, first.box)
  drawn = [first_prompts(rngs.dropout(), *part, first.box_jitter) for part in zip(targets, shares) if len(part[0])]
  groups = len(batch['image']) // group
  embedding, tokens, reads, target, points, labels = (
    _joined(list(part), groups) for part in (embeddings, tokens, reads, targets, *zip(*drawn))
  )

  def decode(points: jax.Array, labels: jax.Array, masks: jax.Array | None, multimask: bool | None):
    sparse = [model.prompt_encoder.embed_points(points, labels, size), tokens]
    present = jnp.concatenate([labels != ABSENT, jnp.broadcast_to(reads[:, None], tokens.shape[:2])], 1)
    return model.decode(embedding, sparse, masks, size, multimask, sparse_mask=present)

  return rounds_loss(decode, points, labels, target, loss_weights, rngs, rounds, clear=reads)


def _parts(array: jax.Array, without: int, group: int) -> list[jax.Array]:
  """[B, ...] -> the rows with a sentence and those without, of every `group` rows, so rows stay on their device."""
  grouped = array.reshape(-1, group, *array.shape[1:])
  return [part.reshape(-1, *array.shape[1:]) for part in (grouped[:, without:], grouped[:, :without])]


def _joined(parts: list[jax.Array], groups: int) -> jax.Array:
  """Joins the results of `_parts`, [B, ...]: in each group the rows with a sentence come first."""
  grouped = [part.reshape(groups, -1, *part.shape[1:]) for part in parts]
  joined = jnp.concatenate(grouped, axis=1)
  return joined.reshape(-1, *joined.shape[2:])
