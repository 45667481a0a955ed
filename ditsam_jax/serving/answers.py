"""Encodes predictions for clients: JSON with COCO run lengths, or the best mask as a PNG file."""

import io
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.inference.results import Prediction
from ditsam_jax.serving.requests import encode_logits


def as_json(prediction: Prediction, low_res: bool) -> dict[str, Any]:
  """Returns a prediction as JSON.

  Args:
    prediction: the prediction.
    low_res: include the low-resolution logits of each mask, see `requests.encode_logits`.
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
  """Encodes a mask, bool [h, w], as a PNG file with values 0 and 255."""
  stream = io.BytesIO()
  Image.fromarray(mask.astype(np.uint8) * 255).save(stream, 'PNG', compress_level=4)
  return stream.getvalue()
