"""The text baseline: SAM's encoder sees the image alone, the sentence prompts the mask decoder. 25 epochs.

  python -m ditsam_jax.train --config=configs/sam_text.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/sam_text.py:refcoco --config.init_from=models/start

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.training.config import recipe, set_epochs


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'none'
  set_epochs(config, 25)
  return config
