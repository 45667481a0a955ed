"""Ablation: L-DIT with BERT frozen.

  python -m ditsam_jax.train --config=ldit_frozen_text:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=ldit_frozen_text:refcoco --config.init_from=models/start

25 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('ldit_frozen_text', data_set)
