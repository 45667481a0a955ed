"""L-DIT: every block of SAM's image encoder gets its own projection of the text.

  python -m ditsam_jax.train --config=configs/ldit.py:shapes      tiny, on the embedded data
  python -m ditsam_jax.train --config=configs/ldit.py:refcoco --config.init_from=models/start

The release reports mIoU, with ViT-B at 512 and its own protocol: RefCOCO val 76.20, testA 77.85, testB 73.53; RefCOCO+
65.94, 69.78, 58.89; RefCOCOg val 67.40, test 68.07; gRefCOCO val 63.76, testA 67.19, testB 61.85.

The data set is prepared once with `python -m ditsam_jax.prepare`, and --config.init_from names a SAM converted with a
BERT; the command says how where one is missing.
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='refcoco'):
  config = recipe(data_set)
  config.model.fusion = 'layer_wise'
  return config
