"""Ablation: the text baseline with 2 more blocks in the mask decoder, 4 in all. 25 epochs.

  python -m ditsam_jax.train --config=configs/sam_text_add_2.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/sam_text_add_2.py:refcoco --config.init_from=models/start

The added blocks start fresh: SAM has two.

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.training.config import recipe, set_epochs


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'none'
  config.model.mask_decoder.depth = 4
  set_epochs(config, 25)
  return config
