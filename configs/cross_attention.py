"""Ablation: before each block, text attends to the slots of the previous one.

  python -m ditsam_jax.train --config=cross_attention:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=cross_attention:refcoco --config.init_from=models/start

25 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('cross_attention', data_set)
