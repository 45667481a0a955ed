"""Rounds of prompts: what each one sees, which masks learn, and where corrective clicks fall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ditsam_jax.models.execution import Execution
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.training.drawn_prompts import corrective_clicks
from ditsam_jax.training.loss import lowest_mask_loss, mask_loss
from ditsam_jax.training.prompt_rounds import prompt_forward
from tests.small_models import random_batch, random_model, small_config

LOSS = dict(bce=1.0, dice=0.5, iou=0.1)
SIZE = (64, 64)


@pytest.fixture(scope='module')
def model():
  model = random_model(small_config(text_encoder=None, fusion='none', align_corners=False))
  model.eval()
  return model


def batch_of(images=2, prompts=3):
  rng = np.random.default_rng(0)
  return dict(
    image=random_batch(images)['image'],
    points=rng.uniform(0, 64, (images, prompts, 2, 2)).astype(np.float32),
    labels=np.asarray([[[1, -1], [2, 3], [ABSENT, ABSENT]]] * images),
    masks=rng.integers(0, 2, (images, prompts, 64, 64), np.uint8),
  )


def decoded(model, batch, i, k, *, points=None, labels=None, mask=None, multimask=None):
  """One prompt of one image, by the model's own call: tokens that are absent are left out."""
  points = batch['points'][i, k] if points is None else points
  labels = batch['labels'][i, k] if labels is None else labels
  seen = np.asarray(labels) != ABSENT

  @jax.jit
  def run(image, points, labels, mask):
    sparse = model.prompt_encoder.embed_points(points, labels, SIZE)
    return model.decode(model.image_encoder(image), [sparse], mask, SIZE, multimask)

  return run(batch['image'][i : i + 1], points[seen][None], labels[seen][None], None if mask is None else mask[None])


@pytest.mark.slow
def test_the_first_round_trains_the_single_mask_and_the_best_of_three(model):
  """K prompts an image are the same as K images with one prompt each, and absent tokens are as none."""
  batch = batch_of()
  loss, metrics = jax.jit(lambda batch: prompt_forward(model, batch, LOSS, None, Execution()))(batch)
  outputs = [decoded(model, batch, i, k) for i in range(2) for k in range(3)]
  logits, iou = jnp.concatenate([out.logits for out in outputs]), jnp.concatenate([out.iou for out in outputs])
  targets = batch['masks'].reshape(6, 64, 64)
  single, expected = mask_loss(logits[:, 0], targets, iou[:, 0], **LOSS)
  lowest, _ = lowest_mask_loss(logits[:, 1:], targets, iou[:, 1:], **LOSS)
  assert float(loss) == pytest.approx(float(single + lowest) / 2, rel=1e-5)
  assert float(metrics['batch_iou']) == pytest.approx(float(expected['batch_iou']), rel=1e-5)


@pytest.mark.slow
def test_later_rounds_see_the_last_mask_and_the_last_of_them_no_new_click(model):
  batch = batch_of(images=1)
  run = jax.jit(lambda batch: prompt_forward(model, batch, LOSS, nnx.Rngs(dropout=7), Execution(), rounds=3))
  loss, metrics = run(batch)
  targets = batch['masks'][0] > 0
  first = [decoded(model, batch, 0, k) for k in range(3)]
  losses = [
    mask_loss(
      jnp.concatenate([out.logits[:, 0] for out in first]), targets, jnp.stack([o.iou[0, 0] for o in first]), **LOSS
    )[0]
  ]
  losses.append(
    lowest_mask_loss(
      jnp.concatenate([out.logits[:, 1:] for out in first]),
      targets,
      jnp.concatenate([out.iou[:, 1:] for out in first]),
      **LOSS,
    )[0]
  )
  best = [1 + int(out.iou[0, 1:].argmax()) for out in first]
  masks = [out.low_res_logits[0, at] for out, at in zip(first, best)]
  wrong = jnp.stack([out.logits[0, at] > 0 for out, at in zip(first, best)])
  clicks, labels = corrective_clicks(nnx.Rngs(dropout=7).dropout(), wrong, targets)
  given = [[1, -1], [2, 3], [ABSENT, -1]]  # with a click, no prompt becomes one of a click and SAM's padding
  for _ in range(2):
    outs = [
      decoded(
        model,
        batch,
        0,
        k,
        points=np.concatenate([batch['points'][0, k], clicks[k]]),
        labels=np.concatenate([given[k], labels[k]]),
        mask=masks[k],
        multimask=False,
      )
      for k in range(3)
    ]
    part, last = mask_loss(
      jnp.concatenate([o.logits for o in outs]), targets, jnp.concatenate([o.iou for o in outs]), **LOSS
    )
    losses.append(part)
    masks = [out.low_res_logits[0] for out in outs]
  assert float(loss) == pytest.approx(float(np.mean(losses)), rel=1e-5)
  assert float(metrics['corrected_iou']) == pytest.approx(float(last['batch_iou']), rel=1e-5)


@pytest.mark.slow
def test_only_the_mask_with_the_lowest_loss_gets_a_gradient():
  rng = np.random.default_rng(0)
  target = rng.integers(0, 2, (2, 8, 8))
  logits = rng.normal(size=(2, 3, 8, 8)).astype(np.float32)
  logits[0, 1] += 2 * target[0] - 1  # the best of the first sample
  logits[1, 2] += 2 * target[1] - 1
  gradient = jax.grad(lambda x: lowest_mask_loss(x, target, jnp.zeros((2, 3)), bce=1, dice=1)[0])(logits)
  moved = np.abs(gradient).max((2, 3)) > 0
  assert moved.tolist() == [[False, True, False], [False, False, True]]


def test_the_predicted_iou_of_every_mask_learns():
  target = np.zeros((1, 4, 4))
  target[0, :2] = 1
  logits = np.stack([4 * target - 2, -np.ones((1, 4, 4)), np.ones((1, 4, 4))], 1).astype(np.float32)
  predicted = jnp.asarray([[0.9, 0.2, 0.1]])
  loss, chosen = lowest_mask_loss(logits, target, predicted, bce=0, iou=1)
  actual = np.array([1.0, 0.0, 0.5])
  assert float(loss) == pytest.approx(np.square(np.asarray(predicted[0]) - actual).mean(), rel=1e-6)
  assert float(chosen) == 1.0
