"""Ablation: the text baseline with 2 more blocks in the mask decoder, 4 in all.

  python -m ditsam_jax.train --config=sam_text_add_2:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=sam_text_add_2:refcoco --config.init_from=models/start

25 epochs. SAM has two blocks, so the added ones are initialised randomly.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('sam_text_add_2', data_set)
