"""All objects of an image, without a prompt, where the library has a mask generator."""

import concurrent.futures
import threading
from typing import Any

from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.refusals import Refused

try:
  from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator  # type: ignore[import-not-found]
except ImportError:
  SamAutomaticMaskGenerator = None

_WAITING = 4


class Everything:
  """One image at a time, beside the prompts: it takes as long as hundreds of them."""

  seconds = 120.0  # for an answer

  def __init__(self, segmenter: Segmenter, limits: Limits):
    self._segmenter = segmenter
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'everything')
    self._lock, self._waiting = threading.Lock(), 0
    self.available = SamAutomaticMaskGenerator is not None

  def submit(self, framed: Framed) -> concurrent.futures.Future[dict[str, Any]]:
    """Starts looking. Raises Refused where that is not possible, or others wait."""
    if not self.available:
      raise Refused(404, 'this version cannot segment everything')
    with self._lock:
      if self._waiting >= _WAITING:
        raise Refused(503, f'{_WAITING} images wait to have everything segmented', 10)
      self._waiting += 1
    future = self._worker.submit(self._masks, framed)
    future.add_done_callback(self._done)
    return future

  def close(self) -> None:
    """Drops what waits."""
    self._worker.shutdown(wait=False, cancel_futures=True)

  def _masks(self, framed: Framed) -> dict[str, Any]:
    generator = SamAutomaticMaskGenerator(self._segmenter, output_mode='coco_rle')
    height, width = framed.size
    masks = [
      {'score': float(found['predicted_iou']), 'area': int(found['area']), 'rle': found['segmentation']}
      for found in generator.generate(framed.image)
    ]
    return {'masks': masks, 'width': width, 'height': height}

  def _done(self, _) -> None:
    with self._lock:
      self._waiting -= 1
