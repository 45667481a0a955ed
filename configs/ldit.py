"""L-DIT: every block of SAM's image encoder gets its own projection of the text.

  python -m ditsam_jax.train --config=configs/ldit.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/ldit.py             ViT-B, RefCOCO, the release's recipe
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'layer_wise'
  return config
