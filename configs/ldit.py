"""L-DIT: every block of SAM's image encoder gets its own projection of the text.

  python -m ditsam_jax.train --config=ldit:shapes      tiny, on the embedded data: minutes on two CPU cores
  python -m ditsam_jax.train --config=ldit:refcoco --config.init_from=models/start

The release reports mIoU, with ViT-B at 512 and its own protocol: RefCOCO val 76.20, testA 77.85, testB 73.53;
RefCOCO+ 65.94, 69.78, 58.89; RefCOCOg val 67.40, test 68.07; gRefCOCO val 63.76, testA 67.19, testB 61.85. 40 epochs.
"""

from ditsam_jax.config import named


def get_config(data_set='refcoco'):
  return named('ldit', data_set)
