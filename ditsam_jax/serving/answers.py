"""Predictions as clients get them: JSON with COCO's run lengths, or the best mask as a PNG file."""

import io
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.inference.results import Prediction
from ditsam_jax.serving.requests import encode_logits


def as_json(prediction: Prediction, low_res: bool) -> dict[str, Any]:
  """A prediction without its pixels.

  Args:
    prediction: what was found.
    low_res: with the low-resolution logits of each mask, see `requests.encode_logits`.
  """
  masks = [
    {'score': float(score), 'area': area, 'box': box, 'rle': rle}
    for score, area, box, rle in zip(prediction.scores, prediction.areas, prediction.boxes, prediction.rles())
  ]
  if low_res:
    for mask, logits in zip(masks, prediction.low_res_logits):
      mask['low_res'] = encode_logits(logits)
  return {
    'masks': masks,
    'best': prediction.best,
    'unknown': list(prediction.unknown),
    'cut': prediction.cut,
  }


def as_png(mask: np.ndarray) -> bytes:
  """A mask bool [h, w] as a PNG file of 0 and 255."""
  stream = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(stream, 'PNG', compress_level=4)
  return stream.getvalue()
