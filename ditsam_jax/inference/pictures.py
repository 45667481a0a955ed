"""Draws a prediction over its image: the best mask, the prompt, a caption with the score."""

import numpy as np

from ditsam_jax.drawing.captions import caption
from ditsam_jax.drawing.overlays import draw_prompt, overlay
from ditsam_jax.inference.prompts import Prompt, in_words


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
  draw_prompt(pixels, points=prompt.points, labels=prompt.labels, box=prompt.box)
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
