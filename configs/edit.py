"""E-DIT: text tokens enter at the first block of SAM's image encoder and travel through all of them.

  python -m ditsam_jax.train --config=edit:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=edit:refcoco --config.init_from=models/start

40 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('edit', data_set)
