"""All objects of an image, without a prompt."""

import concurrent.futures
import threading
from typing import Any

from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.refusals import Refused

_WAITING = 4


class Everything:
  """One image at a time, beside the prompts: it takes as long as hundreds of them."""

  seconds = 120.0  # for an answer

  def __init__(self, segmenter: Segmenter, limits: Limits):
    self._generator = SamAutomaticMaskGenerator(segmenter, output_mode='coco_rle')
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'everything')
    self._lock, self._waiting = threading.Lock(), 0

  def submit(self, framed: Framed) -> concurrent.futures.Future[dict[str, Any]]:
    """Queues an image. Raises Refused if too many wait."""
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
    height, width = framed.size
    masks = [
      {'score': float(found['predicted_iou']), 'area': int(found['area']), 'rle': found['segmentation']}
      for found in self._generator.generate(framed.image)
    ]
    return {'masks': masks, 'width': width, 'height': height}

  def _done(self, _) -> None:
    with self._lock:
      self._waiting -= 1
