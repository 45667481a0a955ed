"""Segments all objects of an image, or all that a phrase refers to."""

import concurrent.futures
import threading
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.inference.framing import Framed
from ditsam_jax.inference.mask_generator import SamAutomaticMaskGenerator
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.serving.limits import Limits
from ditsam_jax.serving.refusals import Refused

_LONGEST = 2**16  # pixels of a side; memory and time grow with it


class Everything:
  """Processes one image at a time alongside prompts; an image takes as long as a hundred prompts."""

  def __init__(self, segmenter: Segmenter, limits: Limits, settings: Mapping[str, Any] = MappingProxyType({})):
    self._most = limits.everything
    self._segmenter, self._settings, self._generator, self._refusal = segmenter, settings, None, ''
    try:
      self._generator = SamAutomaticMaskGenerator(segmenter, output_mode='coco_rle', **settings)
    except UserError as error:  # a model for sentences only
      self._refusal = str(error)
    self._worker = concurrent.futures.ThreadPoolExecutor(1, 'everything')
    self._lock, self._waiting = threading.Lock(), 0

  def compile(self) -> None:
    """Compiles the programs."""
    if self._generator is None:
      return
    side = self._segmenter.config.image_size
    blank = np.zeros((side, side, 3), np.uint8)
    few_points_all_masks = {'points_per_side': 2, 'pred_iou_thresh': 0, 'stability_score_thresh': 0}
    taking_all = SamAutomaticMaskGenerator(
      self._segmenter, output_mode='coco_rle', **{**self._settings, **few_points_all_masks}
    )
    for text in (None, 'a') if self._segmenter.config.text_encoder is not None else (None,):
      taking_all.generate(blank, text)

  def submit(
    self, framed: Framed, text: str | None, wanted: Callable[[], bool] = lambda: True
  ) -> concurrent.futures.Future[dict[str, Any]]:
    """Starts segmenting what a phrase refers to, or everything; stops soon after `wanted` returns False.

    Raises Refused if too many images are waiting, a side is too long, or the model was trained with sentences only.
    """
    if self._generator is None:
      raise Refused(400, self._refusal)
    if max(framed.size) > _LONGEST:
      height, width = framed.size
      raise Refused(
        400, f'an image of {width:,} x {height:,} pixels: expected sides of at most {_LONGEST:,} for everything'
      )
    with self._lock:
      if self._waiting >= self._most:
        raise Refused(503, f'{self._most} images are already waiting to be segmented', 10)
      self._waiting += 1
    generator, images = self._generator, [framed]
    future = self._worker.submit(lambda: self._masks(generator, images[0], text, wanted))
    future.add_done_callback(lambda _: self._done(images))
    return future

  def close(self) -> None:
    """Drops waiting images and finishes the current one."""
    self._worker.shutdown(cancel_futures=True)

  def _masks(
    self, generator: SamAutomaticMaskGenerator, framed: Framed, text: str | None, wanted: Callable[[], bool]
  ) -> dict[str, Any]:
    height, width = framed.size
    masks = []
    for found in generator.generate(framed.image, text, wanted=wanted):
      x, y, w, h = found['bbox']
      box = [x, y, x + w + 1, y + h + 1]  # Meta's width and height end at the last pixel
      masks.append(
        {'score': float(found['predicted_iou']), 'area': int(found['area']), 'box': box, 'rle': found['segmentation']}
      )
    return {'masks': masks, 'width': width, 'height': height}

  def _done(self, images: list[Framed]) -> None:
    images.clear()  # the worker's queue keeps cancelled calls until their turn
    with self._lock:
      self._waiting -= 1
