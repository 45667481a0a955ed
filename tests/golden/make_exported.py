"""Makes exported.jaxexport with the oldest supported JAX: PYTHONPATH=. python tests/golden/make_exported.py

It is the image encoder of `small_models.small_config()`; `small_models.random_model` makes its weights.
"""

from pathlib import Path

import jax

from ditsam_jax.exporting import stablehlo
from ditsam_jax.inference.programs import parts_of
from tests.small_models import random_model, small_config

if __name__ == '__main__':
  assert jax.__version__ == '0.10.0', jax.__version__  # the oldest in pyproject.toml
  config = small_config()
  parts = parts_of(random_model(config))
  program = next(p for p in stablehlo.programs_of(parts, config) if p.name == 'image_encoder')
  data = stablehlo.serialised(program, stablehlo.weights_of(parts)['image_encoder'])
  Path(__file__).with_name('exported.jaxexport').write_bytes(data)
