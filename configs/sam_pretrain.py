"""A tiny SAM trained from scratch on shapes with points, boxes and no prompts; no text. Produces the shipped `sam_shapes`.

python -m ditsam_jax.train --config=sam_pretrain --workdir=runs/sam_shapes      about 20 minutes on two CPU cores
"""

from ditsam_jax.config import named


def get_config(data_set='shapes'):
  return named('sam_pretrain', data_set)
