"""L-DIT on SAM's ViT-H, to whose width the text is projected first.

  python -m ditsam_jax.train --config=ldit_vith:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=ldit_vith:refcoco --config.init_from=models/start

25 epochs. models/start is SAM's ViT-H here, joined with BERT by --fusion=layer_wise_vith.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('ldit_vith', data_set)
