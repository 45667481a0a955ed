"""Fine-tuning on your own pictures: hundreds to thousands of samples, prepared by `ditsam_jax.prepare --name=mine`.

  python -m ditsam_jax.train --config=finetune:mine --config.init_from=models/ldit --workdir=runs/mine

`init_from` is a converted model, a run's workdir or a shipped model (`shapes`). Sizes, fusion, tokenizer and vocabulary
are its own; TODO.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('finetune', data_set)
