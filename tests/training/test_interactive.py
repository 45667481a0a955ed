"""Training with sentences and clicks together: what each row sees, in every round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.config.first_prompts import FirstPromptConfig
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.training.drawn_prompts import corrective_clicks, first_prompts
from ditsam_jax.training.interactive import interactive_forward
from ditsam_jax.training.loss import lowest_mask_loss, mask_loss
from tests.small_models import random_batch, random_model, small_config

LOSS = dict(bce=1.0, dice=0.5, iou=0.1)
SIZE = (64, 64)


def forward(model, batch, rounds, first):
  def run(batch):
    return interactive_forward(model, batch, LOSS, nnx.Rngs(dropout=7), Execution(), rounds, first)

  return jax.jit(run)(batch)


def decoded(model, batch, row, points, labels, *, with_text, mask=None, multimask=False):
  """One row by the model's own parts: tokens that are absent are left out."""
  seen = np.asarray(labels) != ABSENT
  words = tuple(batch[name][row : row + 1] for name in ('token_ids', 'token_mask')) if with_text else None

  @jax.jit
  def run(image, words, points, labels, mask):
    text = None if words is None else model.text_encoder(*words)
    sparse = [model.prompt_encoder.embed_points(points, labels, SIZE)]
    return model.decode(model.image_encoder(image, text), sparse, mask, SIZE, multimask, text)

  points, labels = np.asarray(points)[seen][None], np.asarray(labels)[seen][None]
  return run(batch['image'][row : row + 1], words, points, labels, None if mask is None else mask[None])


def losses_of(outs, targets):
  """Losses of outputs with all four masks: of the single mask, and of the best of three."""
  logits, iou = jnp.concatenate([out.logits for out in outs]), jnp.concatenate([out.iou for out in outs])
  single, metrics = mask_loss(logits[:, 0], targets, iou[:, 0], **LOSS)
  return [single, lowest_mask_loss(logits[:, 1:], targets, iou[:, 1:], **LOSS)[0]], metrics


@pytest.mark.slow
@pytest.mark.parametrize('fusion', ['layer_wise', 'none'])
def test_without_clicks_it_is_training_with_text(fusion):
  model = random_model(small_config(fusion=fusion))
  model.eval()
  batch = random_batch(3)
  loss, metrics = forward(model, batch, 1, FirstPromptConfig(text=1, text_click=0, text_box=0, click=0, box=0))

  @jax.jit
  def run(image, *words):
    return model(image, *words), model(image, *words, multimask=True)

  out, three = run(batch['image'], batch['token_ids'], batch['token_mask'])
  single, expected = mask_loss(out.logits, batch['mask'], out.iou, **LOSS)
  lowest, _ = lowest_mask_loss(three.logits, batch['mask'], three.iou, **LOSS)
  assert float(loss) == pytest.approx(float(single + lowest) / 2, rel=1e-5)
  assert float(metrics['batch_iou']) == pytest.approx(float(expected['batch_iou']), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('fusion', ['layer_wise', 'none'])
def test_every_row_sees_its_own_prompts_and_corrections(fusion):
  """Half of the rows have no sentence; all start with a click; two rounds."""
  model = random_model(small_config(fusion=fusion))
  model.eval()
  batch = random_batch(4)
  loss, metrics = forward(model, batch, 2, FirstPromptConfig(text=0, text_click=0.5, text_box=0, click=0.5, box=0))
  rows = [1, 0, 3, 2]  # in each group of two, the second has a sentence, and comes first
  targets = batch['mask'][rows] > 0
  streams = nnx.Rngs(dropout=7)
  spoken = first_prompts(streams.dropout(), targets[0::2], (0.0, 0.5, 0.0), 0.1)
  silent = first_prompts(streams.dropout(), targets[1::2], (0.0, 0.5, 0.0), 0.1)
  points, labels = (np.stack([a, b], 1).reshape(4, 2, *a.shape[2:]) for a, b in zip(spoken, silent))
  has_text = [True, False, True, False]
  first = [
    decoded(model, batch, row, points[i], labels[i], with_text=has_text[i], multimask=None)
    for i, row in enumerate(rows)
  ]
  losses, expected = losses_of(first, targets)
  best = [0 if has_text[i] else 1 + int(out.iou[0, 1:].argmax()) for i, out in enumerate(first)]
  wrong = jnp.stack([out.logits[0, at] > 0 for out, at in zip(first, best)])
  clicks, added = corrective_clicks(streams.dropout(), wrong, targets)
  second = [
    decoded(
      model,
      batch,
      row,
      np.concatenate([points[i], clicks[i]]),
      np.concatenate([labels[i], added[i]]),
      with_text=has_text[i],
      mask=first[i].low_res_logits[0, best[i]],
    )
    for i, row in enumerate(rows)
  ]
  corrected, last = mask_loss(
    jnp.concatenate([out.logits for out in second]), targets, jnp.concatenate([out.iou for out in second]), **LOSS
  )
  assert float(loss) == pytest.approx(float(np.mean([*losses, corrected])), rel=1e-5)
  assert float(metrics['batch_iou']) == pytest.approx(float(expected['batch_iou']), rel=1e-5)
  assert float(metrics['corrected_iou']) == pytest.approx(float(last['batch_iou']), rel=1e-5)
