"""Training agrees, step by step, with runs of the authors' PyTorch release (tests/golden/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.config import recipe
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.weights import weights_of
from ditsam_jax.training.optimizer import make_optimizer
from ditsam_jax.training.step import averaged_model, make_train_step, text_forward
from tests.ops.attention_cases import on_cpu
from tests.small_models import golden_arrays, golden_model, make_state

EPOCHS = 4  # the first one is the warm-up


def train(name: str, dtype: type, attention: str = 'auto'):
  """Trains a golden model on the golden batches; returns the golden numbers, ours, and the averaged model's logits."""
  golden = {key.removeprefix('train/'): value for key, value in golden_arrays(name).items() if key.startswith('train/')}
  steps = len(golden['loss'])
  config = recipe('refcoco')
  config.optimizer.update(name='adam', learning_rate=1e-3, warmup_steps=steps // EPOCHS)
  optimizer, rate = make_optimizer(config.optimizer, steps)
  model = golden_model(name, 64)
  for variable in weights_of(model).values():
    variable.set_value(variable[...].astype(dtype))
  model.train()
  structure, state = make_state(model, optimizer)
  train_step = make_train_step(
    structure,
    optimizer,
    rate,
    text_forward,
    loss_weights=config.loss.to_dict(),
    ema_limit=config.ema,
    seed=0,
    execution=Execution(attention=attention),
  )
  images = jnp.asarray(np.moveaxis(golden['image'], 2, -1), dtype)
  metrics = []
  for i in range(steps):
    state, values = train_step(
      state,
      dict(
        image=images[i],
        token_ids=golden['token_ids'][i],
        token_mask=golden['token_mask'][i],
        mask=golden['mask'][i, :, 0],
      ),
    )
    metrics.append({key: float(value) for key, value in values.items()})

  def logits(weights):
    model = averaged_model(structure, state._replace(ema=weights))
    return model(images[0], golden['token_ids'][0], golden['token_mask'][0]).logits

  ours = {key: np.asarray([values[key] for values in metrics]) for key in metrics[0]}
  logits = jax.jit(logits)
  ours |= {'final_logits': np.asarray(logits(state.params)), 'ema_logits': np.asarray(logits(state.ema))}
  return golden, ours


def relative_error(logits, golden) -> float:
  return np.abs(logits - golden[:, 0]).max() / np.abs(golden).max()


@pytest.mark.slow
@pytest.mark.verifies(
  'Whole training runs in f32: losses, final and averaged weights',
  against='the DIT release',
  within='losses 5e-4; masks 1e-2 relative',
)
@pytest.mark.parametrize('name, attention', [('ldit', 'auto'), ('edit', 'auto'), ('edit', 'pallas_tpu')])
def test_training_follows_the_release(name, attention):
  with on_cpu(attention):
    golden, ours = train(name, jnp.float32, attention)
  assert np.abs(ours['learning_rate'] - golden['lr']).max() <= 1e-9
  assert np.abs(ours['loss'] - golden['loss']).max() <= 5e-4
  for key in ('final_logits', 'ema_logits'):
    assert relative_error(ours[key], golden[key]) <= 1e-2, key


@pytest.mark.slow
@pytest.mark.verifies(
  'Whole training runs in float64: losses, gradient norms, final and averaged weights',
  against='the DIT release',
  within='losses 1e-5; norms 5e-4; masks 1e-3 relative',
)
@pytest.mark.parametrize('name', ['ldit', 'edit'])
def test_training_in_float64_equals_the_release(name):
  """Without rounding (a single flipped ReLU changes a gradient's norm by a percent), the two agree closely."""
  jax.config.update('jax_disable_most_optimizations', True)  # LLVM's optimisations only change rounding
  with jax.enable_x64(True):
    golden, ours = train(name, jnp.float64)
  assert np.abs(ours['loss'] - golden['loss']).max() <= 1e-5
  np.testing.assert_allclose(ours['grad_norm'], golden['grad_norm'], rtol=5e-4)
  for key in ('final_logits', 'ema_logits'):
    assert relative_error(ours[key], golden[key]) <= 1e-3, key
