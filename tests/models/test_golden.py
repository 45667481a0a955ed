"""The model agrees with numbers from running the authors' PyTorch release (tests/golden/README.md)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.models.execution import Execution
from tests.ops.attention_cases import on_cpu
from tests.small_models import call, golden_arrays, golden_model

SIDES = {
  'ldit': (64, 128),
  'edit': (64, 128),
  'sam_text': (64, 128),
  'edit_token': (96,),
  'ldit_token': (96,),
  'ldit_wide': (96,),
}


def release_order(x: jax.Array) -> jax.Array:
  """[B, h, w, C] -> [B, C, h, w]."""
  return jnp.moveaxis(x, -1, 1)


@pytest.mark.slow
@pytest.mark.verifies(
  'Text features, image embedding, masks and predicted IoU of six models: L-DIT, E-DIT, their token and wide '
  'variants, the text baseline; with each attention',
  against='the DIT release',
  within='2e-5 relative',
)
@pytest.mark.parametrize(
  'name, side, attention',
  [
    ('ldit', 64, 'auto'),
    *(
      pytest.param(*case, marks=pytest.mark.slow)
      for case in (
        *((name, side, 'auto') for name, sides in SIDES.items() for side in sides if (name, side) != ('ldit', 64)),
        *((name, 64, kind) for name in ('ldit', 'edit') for kind in ('reference', 'pallas_tpu', 'pallas_gpu')),
      )
    ),
  ],
)
def test_all_outputs_equal_the_releases(name, side, attention):
  """At 64 and 96, the position embedding and all tables are resized; at 128, only the tables of windowed blocks."""
  golden = {
    key.removeprefix(f'{side}/'): value for key, value in golden_arrays(name).items() if key.startswith(f'{side}/')
  }
  model = golden_model(name, side)
  execution = Execution(attention=attention)
  images = jnp.moveaxis(golden['image'], 1, -1)
  with on_cpu(attention):
    out = call(model, images, golden['token_ids'], golden['token_mask'], execution=execution)
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
