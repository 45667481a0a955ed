"""Draws masks, prompts and scores over images."""

import cv2
import numpy as np

from ditsam_jax.inference.captions import caption
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.jobs.requests import in_words

PREDICTION_COLOUR = (255, 45, 120)
_ON, _OFF, _BOX = (0, 200, 90), (235, 40, 40), (255, 220, 0)
_LIGHT, _DARK = (255, 255, 255), (0, 0, 0)
# Affine colour map [3, 4] of pixels outside the object: mixes colours with a grey of half their brightness, then darkens them.
_DIMMING = 0.82 * np.hstack([0.6 * np.eye(3) + 0.4 * np.full((3, 3), 0.5 / 3), np.full((3, 1), 18)])


def draw(image: np.ndarray, masks: np.ndarray, prompt: Prompt, scores: np.ndarray) -> np.ndarray:
  """Draws the best mask, the prompt's points and box, and a caption with the text and the score over an image.

  Positive points are green discs with a plus, negative points red squares with a minus. The caption is placed at the
  bottom or the top, wherever it hides less.

  Args:
    image: uint8 [h, w, 3].
    masks: bool [M, h, w].
    prompt: a prompt checked by `prompts.checked`.
    scores: f32 [M].

  Returns:
    uint8 [h, w, 3].
  """
  best = int(np.argmax(scores))
  mask = masks[best]
  pixels = overlay(image, mask)
  draw_prompt(pixels, prompt)
  text = prompt.text or in_words(prompt)
  figures = (f'IoU {scores[best]:.2f}', f'{scores[best]:.2f}')
  if not mask.any():
    figures = (f'nothing found, {figures[0]}', 'nothing found', 'nothing', 'none')
  strip = caption(image.shape[:2], text, figures)
  if strip is not None:
    rows = len(strip)
    at_top = _hidden(mask[:rows], prompt, 0, rows) < _hidden(mask[-rows:], prompt, len(mask) - rows, len(mask))
    pixels[slice(rows) if at_top else slice(len(mask) - rows, None)] = strip
  return pixels


def _hidden(mask: np.ndarray, prompt: Prompt, top: int, bottom: int) -> int:
  """Scores how much a caption over these rows would hide: pixels of the mask, and points."""
  count = int(np.count_nonzero(mask))
  if prompt.points is not None:
    count += mask.size * int(np.count_nonzero((prompt.points[:, 1] >= top) & (prompt.points[:, 1] < bottom)))
  return count


def draw_prompt(pixels: np.ndarray, prompt: Prompt) -> None:
  """Draws a checked prompt's box and points over an image, uint8 [h, w, 3], in place."""
  height, width = pixels.shape[:2]
  radius = max(3, round(0.012 * max(height, width)))
  thin = max(1, radius // 4)
  if prompt.box is not None:
    x0, y0, x1, y1 = _inside(prompt.box.reshape(2, 2), width, height).ravel().tolist()
    for colour, thickness in ((_DARK, 3 * thin), (_BOX, thin)):
      cv2.rectangle(pixels, (x0, y0), (x1, y1), colour, thickness)
  if prompt.points is None:
    return
  for (x, y), label in zip(_inside(prompt.points, width, height).tolist(), prompt.labels):
    for colour, size in ((_DARK, radius + 2 * thin), (_LIGHT, radius + thin), (_ON if label else _OFF, radius)):
      if label:
        cv2.circle(pixels, (x, y), size, colour, -1, line_type(thin))
      else:
        cv2.rectangle(pixels, (x - size, y - size), (x + size, y + size), colour, -1)
    arm = round(0.6 * radius)
    cv2.line(pixels, (x - arm, y), (x + arm, y), _LIGHT, thin)
    if label:
      cv2.line(pixels, (x, y - arm), (x, y + arm), _LIGHT, thin)


def _inside(points: np.ndarray, width: int, height: int) -> np.ndarray:
  """Rounds points [N, 2] (x, y) to pixels, clipped to the picture."""
  return np.rint(np.clip(points, 0, (width - 1, height - 1))).astype(int)


def overlay(
  image: np.ndarray,
  mask: np.ndarray,
  *,
  colour: tuple[int, int, int] = PREDICTION_COLOUR,
  tint: float = 0.2,
) -> np.ndarray:
  """Tints and outlines the object and dims the rest towards grey; returns uint8 [h, w, 3].

  Args:
    image: uint8 [h, w, 3].
    mask: bool [h, w].
    colour: RGB colour of the tint and the outline.
    tint: strength; 0 leaves the object's pixels unchanged, 1 replaces them.
  """
  pixels = cv2.transform(image, _DIMMING)
  mask = mask.astype(np.uint8)
  left, top, width, height = cv2.boundingRect(mask)
  if not width:
    return pixels
  # From here on, only the object's bounding box and the outline around it change.
  box = slice(top, top + height), slice(left, left + width)
  cv2.copyTo(cv2.transform(image[box], _tinting(colour, tint)), mask[box], pixels[box])
  contours, _ = cv2.findContours(mask[box], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top))
  thickness = max(2, round(max(image.shape[:2]) / 256))
  # A light line under the coloured one keeps the outline visible on an object of the same colour.
  cv2.polylines(pixels, contours, True, (255, 255, 255), 2 * thickness, line_type(thickness))
  cv2.polylines(pixels, contours, True, colour, thickness, line_type(thickness))
  return pixels


def _tinting(colour: tuple[int, int, int], amount: float) -> np.ndarray:
  """Returns an affine colour map [3, 4] that mixes colours with `colour`."""
  return np.hstack([(1 - amount) * np.eye(3), amount * np.array(colour, np.float64)[:, None]])


def line_type(thickness: int) -> int:
  """Returns OpenCV's line type for a thickness."""
  # Antialiasing takes most of the time and is visible only in thin lines.
  return cv2.LINE_AA if thickness < 6 else cv2.LINE_8
