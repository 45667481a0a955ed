"""A tiny SAM from scratch on shapes, trained as SAM is: clicks, boxes, corrective clicks and masks, no text.

python -m ditsam_jax.train --config=sam_pretrain --workdir=runs/sam      about half an hour on two idle CPU cores
"""

from ditsam_jax.config import named


def get_config(data_set='shapes'):
  return named('sam_pretrain', data_set)
