"""The model agrees with numbers from running the authors' PyTorch release (tests/golden/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.ops.attention_cases import on_cpu
from tests.small_models import golden_arrays, golden_model

MODELS = ('ldit', 'edit', 'sam_text')


def release_order(x: jax.Array) -> jax.Array:
  """[B, h, w, C] -> [B, C, h, w]."""
  return jnp.moveaxis(x, -1, 1)


@pytest.mark.parametrize(
  'name, side, attention',
  [
    *((name, side, 'auto') for name in MODELS for side in (64, 128)),
    *((name, 64, attention) for name in ('ldit', 'edit') for attention in ('reference', 'pallas_tpu', 'pallas_gpu')),
  ],
)
def test_every_output_is_the_releases(name, side, attention):
  """At 64 the position embedding and all tables are resized; at 128 only the windowed blocks' tables are."""
  golden = {
    key.removeprefix(f'{side}/'): value for key, value in golden_arrays(name).items() if key.startswith(f'{side}/')
  }
  model = golden_model(name, side, attention=attention)
  images = jnp.moveaxis(golden['image'], 1, -1)
  with on_cpu(attention):
    out = nnx.jit(lambda model, *batch: model(*batch))(model, images, golden['token_ids'], golden['token_mask'])
  for key, value in {
    'text_features': out.text_features,
    'image_embedding': release_order(out.image_embedding),
    'low_res_logits': out.low_res_logits[:, None],
    'iou': out.iou[:, None],
    'logits': out.logits[:, None],
  }.items():
    error = np.abs(value - golden[key]).max() / np.abs(golden[key]).max()
    assert value.shape == golden[key].shape
    assert error <= 2e-5, f'{key}: {error}'
