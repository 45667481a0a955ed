"""Two protocols that convert logits in the model's square to a mask at the image's own size.

`release` is the authors' protocol: it resizes the *binary* mask and keeps all pixels above 0, so masks grow by up to a
pixel. `standard` resizes the logits and then applies the threshold, like most papers.
"""

import numpy as np

from ditsam_jax.geometry.letterbox import Letterbox, logit, own_size_logits, to_own_size


def release_mask(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float) -> np.ndarray:
  """Logits [S, S] to a mask, bool [h, w]: threshold, crop, resize the 0/1 mask, keep everything above 0."""
  binary = logits[letterbox.window] > logit(threshold)
  return to_own_size(binary.astype(np.float32), size) > 0


def standard_mask(logits: np.ndarray, letterbox: Letterbox, size: tuple[int, int], threshold: float) -> np.ndarray:
  """Logits [S, S] to a mask, bool [h, w]: crop, resize, threshold."""
  return own_size_logits(logits, letterbox, size) > logit(threshold)


PROTOCOLS = {'release': release_mask, 'standard': standard_mask}
