"""The text baseline: SAM's encoder sees the image alone, the sentence prompts the mask decoder.

  python -m ditsam_jax.train --config=configs/sam_text.py:shapes  tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/sam_text.py         ViT-B, RefCOCO, the release's recipe
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'none'
  return config
