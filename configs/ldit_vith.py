"""L-DIT with SAM's ViT-H; the text is first projected to its width.

  python -m ditsam_jax.train --config=ldit_vith:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=ldit_vith:refcoco --config.init_from=models/start

25 epochs. Here, models/start is SAM's ViT-H combined with BERT, converted with --fusion=layer_wise_vith.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('ldit_vith', data_set)
