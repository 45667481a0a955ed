"""A picture of corrections: one row per sample, from the sentence's mask over each click to the truth."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditsam_jax.drawing.overlays import TRUTH_COLOUR, draw_prompt, overlay
from ditsam_jax.drawing.sheets import FAINT, INK, PAPER, Reservoir, fitted, wrap
from ditsam_jax.evaluation.results import Sample
from ditsam_jax.inference.prompts import Prompt
from ditsam_jax.inference.results import Prediction

_TILE, _GAP, _MARGIN = 224, 10, 28
_TEXT, _SMALL = 22, 16
_ROWS = 8


class ClickGallery:
  """Keeps a uniform random sample of the samples offered, the same in each evaluation, and draws it."""

  def __init__(self):
    self._draw: Reservoir[tuple[str, list[np.ndarray], list[str]]] = Reservoir(_ROWS)

  def offer(self, sample: Sample, truth: np.ndarray, predictions: list[Prediction], ious: list[float]) -> None:
    """Offers one sample, see `evaluate_clicks`."""
    self._draw.offer(lambda: _row(sample, truth, predictions, ious))

  def panel(self, heading: str) -> Image.Image:
    """Draws the rows under a heading."""
    columns = max((len(tiles) for _, tiles, _ in self._draw.kept), default=1)
    height = _TEXT + 14 + _TILE + _SMALL + 24
    width = 2 * _MARGIN + columns * (_TILE + _GAP) - _GAP
    sheet = Image.new('RGB', (width, 2 * _MARGIN + 48 + len(self._draw.kept) * height), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((_MARGIN, _MARGIN), heading, INK, ImageFont.load_default(size=_TEXT + 6))
    text, small = ImageFont.load_default(size=_TEXT), ImageFont.load_default(size=_SMALL)
    for number, (sentence, tiles, captions) in enumerate(self._draw.kept):
      top = _MARGIN + 48 + number * height
      [line] = wrap(sentence, text, width - 2 * _MARGIN, 1)
      pen.text((_MARGIN, top), line, INK, text)
      for column, (tile, caption) in enumerate(zip(tiles, captions)):
        left = _MARGIN + column * (_TILE + _GAP)
        high, wide = tile.shape[:2]
        middle = left + (_TILE - wide) // 2, top + _TEXT + 14 + (_TILE - high) // 2
        sheet.paste(Image.fromarray(tile), middle)
        pen.text((left + _TILE / 2, top + _TEXT + 18 + _TILE), caption, FAINT, small, anchor='ma')
    return sheet


def _row(
  sample: Sample, truth: np.ndarray, predictions: list[Prediction], ious: list[float]
) -> tuple[str, list[np.ndarray], list[str]]:
  tiles, captions = [], []
  for number, (prediction, iou) in enumerate(zip(predictions, ious)):
    tiles.append(_tile(prediction.image, prediction.mask, prediction.prompt))
    when = 'sentence' if number == 0 else f'{number} click{"s" if number > 1 else ""}'
    captions.append(f'{when}: IoU {iou:.2f}')
  tiles.append(_tile(predictions[0].image, truth, None))
  return sample.expression, tiles, [*captions, 'truth']


def _tile(image: np.ndarray, mask: np.ndarray, prompt: Prompt | None) -> np.ndarray:
  """The image at the tile's size, with a mask and the prompt's clicks over it."""
  pixels, shown = fitted(image, _TILE), fitted(mask, _TILE)
  if prompt is None:
    return overlay(pixels, shown, colour=TRUTH_COLOUR, tint=0.1)
  pixels = overlay(pixels, shown, tint=0.1)
  if prompt.points is not None:
    scale = _TILE / max(image.shape[:2])
    centres = (np.asarray(prompt.points) + 0.5) * scale - 0.5
    draw_prompt(pixels, points=centres, labels=prompt.labels)
  return pixels
