"""Ablation: E-DIT with learnt tokens added between blocks instead of projections.

  python -m ditsam_jax.train --config=configs/edit_token.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/edit_token.py:refcoco --config.init_from=models/start

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'e2e_token'
  return config
