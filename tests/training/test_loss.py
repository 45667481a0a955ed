"""Losses agree with float64 NumPy, sample by sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.training.loss import mask_loss


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  target = rng.random((3, 8, 8)) < 0.4
  target[2] = False  # an empty target
  return rng.normal(scale=3, size=(3, 8, 8)).astype(np.float32), target, np.asarray([0.2, 0.9, 0.5], np.float32)


def by_numpy(logits, target, predicted_iou):
  """Returns (bce, dice, iou loss, mean IoU)."""
  rows = []
  for z, t, predicted in zip(logits.astype(np.float64), target, predicted_iou):
    p = 1 / (1 + np.exp(-z))
    bce = -np.mean(np.where(t, np.log(p), np.log(1 - p)))
    dice = 1 - (2 * p[t].sum() + 1) / (p.sum() + t.sum() + 1)
    actual = ((z > 0) & t).sum() / max(((z > 0) | t).sum(), 1)
    rows.append((bce, dice, (predicted - actual) ** 2, actual))
  return np.mean(rows, axis=0)


@pytest.mark.verifies('The loss: BCE, Dice, predicted IoU', against='float64 NumPy', within='1e-5 relative')
@pytest.mark.parametrize('weights', [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 2.0, 0.5)])
def test_the_loss_is_the_weighted_sum(batch, weights):
  loss, log = mask_loss(*batch, **dict(zip(('bce', 'dice', 'iou'), weights)))
  *terms, mean_iou = by_numpy(*batch)
  assert float(loss) == pytest.approx(float(np.dot(terms, weights)), rel=1e-5)
  assert float(log['loss']) == float(loss) and float(log['batch_iou']) == pytest.approx(mean_iou, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('logit', [-200.0, 200.0])
def test_huge_logits_give_finite_losses_and_gradients(logit):
  logits, target = jnp.full((1, 4, 4), logit), jnp.ones((1, 4, 4), jnp.uint8)
  value, gradient = jax.value_and_grad(lambda z: mask_loss(z, target, jnp.ones(1), dice=1.0, iou=1.0)[0])(logits)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_iou_of_two_empty_masks_is_zero():
  _, log = mask_loss(jnp.full((1, 4, 4), -5.0), jnp.zeros((1, 4, 4)), jnp.zeros(1), iou=1.0)
  assert float(log['batch_iou']) == 0.0


def test_the_iou_loss_has_no_gradient_through_the_masks():
  logits, target = jnp.ones((1, 4, 4)), jnp.ones((1, 4, 4))
  loss = lambda z, predicted: mask_loss(z, target, predicted, bce=0.0, iou=1.0)[0]
  by_logits, by_predicted = jax.grad(loss, (0, 1))(logits, jnp.asarray([0.25]))
  np.testing.assert_array_equal(by_logits, 0.0)
  np.testing.assert_allclose(by_predicted, [2 * (0.25 - 1.0)])
