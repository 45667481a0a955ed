"""A tiny SAM from scratch on shapes: points, boxes and no prompts, no text. Makes the shipped `sam_shapes`.

python -m ditsam_jax.train --config=configs/sam_pretrain.py --workdir=runs/sam_shapes
"""

from ditsam_jax.training.config import recipe


def get_config(data_set='shapes'):
  config = recipe(data_set)
  config.task = 'prompts'
  config.init_from = ''
  config.model.fusion = 'none'
  config.model.text_encoder = None
  config.data.batch_size = 32  # images, each with objects_per_image prompts
  config.total_steps = 2800
  config.eval_every = 0
  config.optimizer.warmup_steps = 200
  return config
