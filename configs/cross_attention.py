"""Ablation: before every block, text attends to the slots that come out of the one before. 25 epochs.

  python -m ditsam_jax.train --config=configs/cross_attention.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/cross_attention.py:refcoco --config.init_from=models/start

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.training.config import recipe, set_epochs


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'cross_attention'
  set_epochs(config, 25)
  return config
