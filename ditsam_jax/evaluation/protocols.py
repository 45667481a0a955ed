"""Converts logits in the model's square to a mask at the image's own size, by two protocols.

`release` is the authors' protocol: the *binary* mask is resized and every pixel above 0
counts, so masks grow by up to a pixel. `standard` resizes logits and thresholds after, as most papers do.
"""

import numpy as np

from ditsam_jax.geometry.letterbox import Letterbox, logit, own_size_logits, to_own_size


def release_mask(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float) -> np.ndarray:
  """bool [h, w] of logits [S, S]: threshold, cut out, resize the 0/1 mask, keep everything above 0."""
  binary = logits[letterbox.window] > logit(threshold)
  return to_own_size(binary.astype(np.float32), size) > 0


def standard_mask(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float) -> np.ndarray:
  """bool [h, w] of logits [S, S]: cut out, resize, threshold."""
  return own_size_logits(logits, letterbox, size) > logit(threshold)


PROTOCOLS = {'release': release_mask, 'standard': standard_mask}
