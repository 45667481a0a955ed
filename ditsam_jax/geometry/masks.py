"""Masks as boxes and as COCO's run lengths."""

from typing import Any

import cv2
import numpy as np


def bounding_box(mask: np.ndarray) -> list[int] | None:
  """[x0, y0, x1, y1] of the outermost pixels of a bool mask [h, w], as SAM's box prompts; None if it is empty."""
  left, top, width, height = cv2.boundingRect(mask.view(np.uint8) if mask.dtype == bool else mask)
  return [left, top, left + width - 1, top + height - 1] if width else None


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
  """A bool mask [h, w] as COCO's compressed run lengths, {'size': [h, w], 'counts': str}."""
  from pycocotools import mask as coco_mask  # imported late: few programs need it

  encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {'size': list(map(int, encoded['size'])), 'counts': encoded['counts'].decode('ascii')}


def decode_rle(encoded: dict[str, Any]) -> np.ndarray:
  """The inverse of `encode_rle`, bool [h, w]."""
  from pycocotools import mask as coco_mask

  return coco_mask.decode({'size': encoded['size'], 'counts': encoded['counts'].encode('ascii')}).astype(bool)
