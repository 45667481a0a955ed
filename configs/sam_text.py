"""The text baseline: the sentence only prompts the mask decoder; SAM's encoder sees the image alone.

  python -m ditsam_jax.train --config=sam_text:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=sam_text:refcoco --config.init_from=models/start

25 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('sam_text', data_set)
