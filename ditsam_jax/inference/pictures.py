"""Masks laid over images."""

import cv2
import numpy as np

from ditsam_jax.inference.prompts import Prompt

PREDICTION_COLOUR = (255, 45, 120)


def draw(image: np.ndarray, masks: np.ndarray, prompt: Prompt, scores: np.ndarray) -> np.ndarray:
  """The image uint8 [h, w, 3] with masks bool [M, h, w] laid over it, uint8 [h, w, 3]."""
  del prompt, scores
  return overlay(image, masks.any(0))


def overlay(
  image: np.ndarray,
  mask: np.ndarray,
  *,
  colour: tuple[int, int, int] = PREDICTION_COLOUR,
  tint: float = 0.2,
  dim: float = 0.4,
) -> np.ndarray:
  """The image with the object tinted and outlined and the rest dimmed towards grey, uint8 [h, w, 3].

  image: uint8 [h, w, 3]; mask: bool [h, w]; `tint`, `dim`: 0 leaves the pixels as they are, 1 replaces them.
  """
  pixels = cv2.transform(image, _dimming(dim))
  mask = mask.astype(np.uint8)
  left, top, width, height = cv2.boundingRect(mask)
  if not width:
    return pixels
  # All that is left to do lies in the object's box, and the outline just outside it.
  box = slice(top, top + height), slice(left, left + width)
  cv2.copyTo(cv2.transform(image[box], _tinting(colour, tint)), mask[box], pixels[box])
  contours, _ = cv2.findContours(mask[box], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
  thickness = max(2, round(max(image.shape[:2]) / 256))
  # A light line under the coloured one keeps the outline visible on an object of the same colour.
  cv2.polylines(pixels, contours, True, (255, 255, 255), 2 * thickness, _line_type(thickness))
  cv2.polylines(pixels, contours, True, colour, thickness, _line_type(thickness))
  return pixels


def _dimming(amount: float) -> np.ndarray:
  """Colours mixed with a grey of half their brightness, then darkened: an affine map [3, 4]."""
  grey = np.full((3, 3), 0.5 / 3)
  mixed = np.hstack([(1 - amount) * np.eye(3) + amount * grey, np.full((3, 1), 45 * amount)])
  return (1 - 0.45 * amount) * mixed


def _tinting(colour: tuple[int, int, int], amount: float) -> np.ndarray:
  """Colours mixed with `colour`: an affine map [3, 4]."""
  return np.hstack([(1 - amount) * np.eye(3), amount * np.array(colour, np.float64)[:, None]])


def _line_type(thickness: int) -> int:
  # Smoothing takes most of the time, and shows in thin lines only.
  return cv2.LINE_AA if thickness < 6 else cv2.LINE_8
