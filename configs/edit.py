"""E-DIT: text tokens enter at the first block of SAM's image encoder and travel through all of them.

  python -m ditsam_jax.train --config=configs/edit.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/edit.py             ViT-B, RefCOCO, the release's recipe
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'e2e'
  return config
