"""Ablation: the text baseline with 4 more blocks in the mask decoder, 6 in all.

  python -m ditsam_jax.train --config=sam_text_add_4:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=sam_text_add_4:refcoco --config.init_from=models/start

25 epochs. SAM has two blocks, so the added ones are initialised randomly.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('sam_text_add_4', data_set)
