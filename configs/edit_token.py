"""Ablation: E-DIT with learnt tokens added between blocks instead of projections.

  python -m ditsam_jax.train --config=edit_token:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=edit_token:refcoco --config.init_from=models/start

40 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('edit_token', data_set)
