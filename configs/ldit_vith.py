"""L-DIT on SAM's ViT-H, to whose width the text is projected first. 25 epochs.

  python -m ditsam_jax.train --config=configs/ldit_vith.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/ldit_vith.py:refcoco --config.init_from=models/start

models/start is SAM's ViT-H here, joined with BERT by --fusion=layer_wise_vith.

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.models import config as models
from ditsam_jax.training.config import as_config_dict, recipe, set_epochs


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  if data_set != 'shapes':
    config.model = as_config_dict(models.vit_h())
  config.model.fusion = 'layer_wise_vith'
  set_epochs(config, 25)
  return config
