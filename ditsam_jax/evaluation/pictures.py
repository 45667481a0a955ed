"""Contact sheets of predictions: random samples, failures, and the worst, median and best."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ditsam_jax.drawing.overlays import TRUTH_COLOUR, overlay
from ditsam_jax.drawing.sheets import FAINT, INK, PAPER, Reservoir, fitted, wrap

_CARD, _LINE = '#ffffff', '#dfe2e7'
_GOOD, _FAIR, _POOR = '#12805c', '#b7791f', '#c0362c'
_TILE = 256  # side of the square in which an image is shown, in pixels
_MARGIN, _PADDING, _GAP = 28, 14, 8
_TEXT_SIZE, _SMALL_SIZE, _TITLE_SIZE = 22, 16, 26
_TEXT_LINES = 2
_COLUMNS = 2  # cards per row
_ROWS, _FAILURE_ROWS = 5, 3
_TINT = 0.1  # weak, because expressions mention colours

FAILURE_IOU = 0.5


@dataclasses.dataclass(frozen=True)
class Shown:
  """A sample of a contact sheet; image uint8 [h, w, 3], masks bool [h, w]."""

  image: np.ndarray
  expression: str
  kind: str
  prediction: np.ndarray
  truth: np.ndarray
  iou: float


class Gallery:
  """Collects samples for a contact sheet during an evaluation.

  Samples are not cherry-picked: there is a random selection, with equally many of each kind of expression, and a random
  selection of failures. The first is the same in each evaluation of the same samples. Memory is bounded, and images are
  only created for samples that are kept.
  """

  def __init__(self, pixel_mean: Sequence[float], pixel_std: Sequence[float]) -> None:
    """`pixel_mean`, `pixel_std`: the model's normalisation, on a scale of 0 to 1."""
    self._mean, self._std = np.asarray(pixel_mean, np.float32), np.asarray(pixel_std, np.float32)
    self._draws: dict[str, Reservoir[Shown]] = {}  # by kind of expression
    self._failures: dict[str, Reservoir[Shown]] = {}

  def offer(self, image: np.ndarray, info, prediction: np.ndarray, truth: np.ndarray, iou: float) -> None:
    """Offers one sample: normalised image f32 [S, S, 3], masks [S, S], and the pipeline's `info`."""

    def make() -> Shown:
      return shown(image, info, prediction, truth, iou, self._mean, self._std)

    self._draw(self._draws, info.kind).offer(make)
    if iou <= FAILURE_IOU:
      self._draw(self._failures, info.kind).offer(make)

  def panel(self, heading: str = '') -> Image.Image:
    """Draws the contact sheet."""
    return prediction_panel(self.sections(), heading=heading)

  def fixed_panel(self, heading: str = '') -> Image.Image:
    """Draws only the random selection, which is the same at every evaluation."""
    _, samples = self.sections()[0]
    return prediction_panel([('The same samples at every evaluation', samples)], heading=heading)

  def sections(self) -> list[tuple[str, list[Shown]]]:
    """Titles and samples of the random selection and of the failures."""
    evenly = ', evenly from the kinds of expression' if len(self._draws) > 1 else ''
    rows = 1 if evenly else _ROWS
    draws, failures = ([draw for _, draw in sorted(draws.items())] for draws in (self._draws, self._failures))
    offered, failed = (sum(draw.offered for draw in draws) for draws in (draws, failures))
    share = f'{failed:,} of {offered:,} samples ({100 * failed / max(offered, 1):.1f} %)'
    chosen = f', drawn at random{evenly}' if failed else ''
    most = _FAILURE_ROWS * _COLUMNS
    return [
      (f'Drawn at random{evenly}', [shown for draw in draws for shown in draw.kept[: rows * _COLUMNS]]),
      (f'Failures, IoU up to {FAILURE_IOU}: {share}{chosen}', _interleaved(failures)[:most]),
    ]

  def _draw(self, draws: dict[str, Reservoir[Shown]], kind: str) -> Reservoir[Shown]:
    return draws.setdefault(kind, Reservoir(_ROWS * _COLUMNS))


def shown(
  image: np.ndarray,
  info,
  prediction: np.ndarray,
  truth: np.ndarray,
  iou: float,
  mean: Sequence[float] | np.ndarray,
  std: Sequence[float] | np.ndarray,
) -> Shown:
  """Cuts a sample out of the model's square. For the arguments see `Gallery.offer`; `mean`, `std`: normalisation."""
  window = info.letterbox.window
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  pixels = np.clip((np.asarray(image[window], np.float32) * std + mean) * 255 + 0.5, 0, 255)
  # Copies, because views would keep whole batches in memory.
  return Shown(
    pixels.astype(np.uint8),
    info.expression,
    info.kind,
    np.array(prediction[window], bool),
    np.array(truth[window], bool),
    float(iou),
  )


def worst_median_best(ious: np.ndarray, count: int) -> list[tuple[str, list[int]]]:
  """Titles and indices into `ious` (0 to 1, [N]) of the `count` worst, median and best samples, by ascending IoU.

  Ties are broken in a fixed random order, because the first samples of a split are from few images.
  """
  order = np.lexsort((np.random.default_rng(0).permutation(len(ious)), ious))
  count = min(count, len(order))
  middle = (len(order) - count) // 2
  parts = (('Worst', order[:count]), ('Median', order[middle : middle + count]), ('Best', order[len(order) - count :]))
  return [(f'{name} {count} of {len(order):,} samples', part.tolist()) for name, part in parts]


def _interleaved(draws: list[Reservoir[Shown]]) -> list[Shown]:
  """The first sample of each draw, then the second of each, and so on."""
  rounds = itertools.zip_longest(*(draw.kept for draw in draws))
  return [shown for samples in rounds for shown in samples if shown is not None]


def prediction_panel(sections: Sequence[tuple[str, Sequence[Shown]]], *, heading: str = '') -> Image.Image:
  """Draws a contact sheet: sections with a title and cards of expression, IoU, image, prediction and truth."""
  card_width, card_height = _card_size()
  width = 2 * _MARGIN + _COLUMNS * card_width + (_COLUMNS - 1) * _MARGIN
  row = card_height + _MARGIN // 2
  title_height = 2 * _TITLE_SIZE
  rows = [-(-len(samples) // _COLUMNS) for _, samples in sections]
  heading_height = 2 * _TITLE_SIZE if heading else 0
  height = 2 * _MARGIN + heading_height + sum(title_height + row * count for count in rows)
  sheet = Image.new('RGB', (width, height), PAPER)
  draw = ImageDraw.Draw(sheet)
  if heading:
    draw.text((_MARGIN, _MARGIN), heading, INK, ImageFont.load_default(size=_TITLE_SIZE + 6))
  y = _MARGIN + heading_height
  for (title, samples), count in zip(sections, rows):
    draw.text((_MARGIN, y + 6), title, FAINT, ImageFont.load_default(size=_TITLE_SIZE))
    y += title_height
    for index, sample in enumerate(samples):
      x = _MARGIN + (index % _COLUMNS) * (card_width + _MARGIN)
      sheet.paste(_card(sample), (x, y + index // _COLUMNS * row))
    y += count * row
  return sheet


def _card_size() -> tuple[int, int]:
  width = 2 * _PADDING + 3 * _TILE + 2 * _GAP
  text = _TEXT_LINES * (_TEXT_SIZE + 6) + _GAP
  return width, 2 * _PADDING + text + _TILE + _SMALL_SIZE + 10


def _card(sample: Shown) -> Image.Image:
  size = _card_size()
  card = Image.new('RGB', size, _CARD)
  draw = ImageDraw.Draw(card)
  draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline=_LINE)
  badge_left = _draw_badge(draw, sample.iou, size[0] - _PADDING)
  font, small = ImageFont.load_default(size=_TEXT_SIZE), ImageFont.load_default(size=_SMALL_SIZE)
  lines = wrap(sample.expression, font, badge_left - 2 * _PADDING, _TEXT_LINES)
  # A single line is centred in the space of two.
  y = _PADDING + (_TEXT_LINES - len(lines)) * (_TEXT_SIZE + 6) // 2
  for line in lines:
    draw.text((_PADDING, y), line, INK, font)
    y += _TEXT_SIZE + 6
  y = size[1] - _PADDING - _TILE - _SMALL_SIZE - 10
  found, true = ('' if mask.any() else ' (empty)' for mask in (sample.prediction, sample.truth))
  pixels, prediction, truth = (fitted(array, _TILE) for array in (sample.image, sample.prediction, sample.truth))
  tiles = (
    (pixels, sample.kind or 'image'),
    (overlay(pixels, prediction, tint=_TINT), 'prediction' + found),
    (overlay(pixels, truth, colour=TRUTH_COLOUR, tint=_TINT), 'truth' + true),
  )
  for index, (tile, caption) in enumerate(tiles):
    x = _PADDING + index * (_TILE + _GAP)
    height, width = tile.shape[:2]
    card.paste(Image.fromarray(tile), (x + (_TILE - width) // 2, y + (_TILE - height) // 2))
    draw.text((x + _TILE / 2, y + _TILE + 6), caption, FAINT, small, anchor='ma')
  return card


def _draw_badge(draw: ImageDraw.ImageDraw, iou: float, right: int) -> float:
  """Draws the IoU on a coloured badge that ends at `right`; returns the badge's left edge."""
  font = ImageFont.load_default(size=_TEXT_SIZE)
  text = f'IoU {iou:.2f}'
  left = right - font.getlength(text) - 20
  colour = _GOOD if iou > 0.75 else _FAIR if iou > 0.5 else _POOR
  top = _PADDING + 8
  draw.rounded_rectangle((left, top, right, top + _TEXT_SIZE + 14), radius=8, fill=colour)
  draw.text(((left + right) / 2, top + _TEXT_SIZE / 2 + 7), text, '#ffffff', font, anchor='mm')
  return left
