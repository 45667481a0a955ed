"""All objects of an image, or all that a phrase names."""

import concurrent.futures
import threading
from typing import Any

import numpy as np

from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.refusals import Refused

_WAITING = 4


class Everything:
  """One image at a time, beside the prompts of others: it takes as long as a hundred of them."""

  seconds = 120.0  # for an answer

  def __init__(self, segmenter: Segmenter):
    self._segmenter = segmenter
    self._generator = SamAutomaticMaskGenerator(segmenter, output_mode='coco_rle')
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'everything')
    self._lock, self._waiting = threading.Lock(), 0

  def compile(self) -> None:
    """Compiles its programs."""
    side = self._segmenter.config.image_size
    blank = np.zeros((side, side, 3), np.uint8)
    taking_all = SamAutomaticMaskGenerator(
      self._segmenter, points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0, output_mode='coco_rle'
    )
    for text in (None, 'a') if self._segmenter.config.text_encoder is not None else (None,):
      taking_all.generate(blank, text)

  def submit(self, framed: Framed, text: str | None) -> concurrent.futures.Future[dict[str, Any]]:
    """Starts looking for what a phrase names, or for everything. Raises Refused where others wait."""
    with self._lock:
      if self._waiting >= _WAITING:
        raise Refused(503, f'{_WAITING} images wait to have everything segmented', 10)
      self._waiting += 1
    future = self._worker.submit(self._masks, framed, text)
    future.add_done_callback(self._done)
    return future

  def close(self) -> None:
    """Drops what waits, and finishes what is under way."""
    self._worker.shutdown(cancel_futures=True)

  def _masks(self, framed: Framed, text: str | None) -> dict[str, Any]:
    height, width = framed.size
    masks = []
    for found in self._generator.generate(framed.image, text):
      x, y, w, h = found['bbox']
      box = [x, y, x + w + 1, y + h + 1]  # Meta's counts from the first pixel to the last
      masks.append(
        {'score': float(found['predicted_iou']), 'area': int(found['area']), 'box': box, 'rle': found['segmentation']}
      )
    return {'masks': masks, 'width': width, 'height': height}

  def _done(self, _) -> None:
    with self._lock:
      self._waiting -= 1
