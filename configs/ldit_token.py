"""Ablation: L-DIT with learnt tokens added to the text before each block instead of projections.

  python -m ditsam_jax.train --config=ldit_token:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=ldit_token:refcoco --config.init_from=models/start

40 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('ldit_token', data_set)
