"""Draws visual prompts from masks to train a SAM: points, boxes, or nothing."""

import dataclasses

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.models.prompt_encoder import BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT

KINDS = ('point', 'two_points', 'box', 'none')
POINTS = 2  # slots per prompt: one or two points, or the two corners of a box


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """Probabilities of the prompts; the four add up to 1."""

  point: float = 0.35
  two_points: float = 0.2
  box: float = 0.35
  none: float = 0.1  # no prompt; the target is the union of all objects
  box_jitter: float = 0.1  # each side of a box moves by up to this share of the box's length

  def __post_init__(self):
    shares = {kind: getattr(self, kind) for kind in KINDS}
    if min(shares.values()) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
      raise UserError(f'prompts: shares are {shares}; expected none below 0, adding up to 1')


def draw_kind(config: PromptConfig, rng: np.random.Generator) -> str:
  """Draws 'point', 'two_points', 'box' or 'none'."""
  return KINDS[rng.choice(len(KINDS), p=[getattr(config, kind) for kind in KINDS])]


def draw_prompt(
  kind: str,
  mask: np.ndarray,
  config: PromptConfig,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Draws a prompt for `mask` [S, S]: points float32 [POINTS, 2] and labels int32 [POINTS].

  Points are (x, y) in pixels; pixel centres have integer coordinates (SAM adds 0.5 itself). An empty mask always gets the
  prompt 'none'.
  """
  points = np.zeros((POINTS, 2), np.float32)
  labels = np.full(POINTS, PADDING, np.int32)
  if kind == 'none' or not mask.any():
    return points, labels
  if kind == 'box':
    points[:] = _box(mask, config.box_jitter, rng)
    labels[:] = TOP_LEFT, BOTTOM_RIGHT
    return points, labels
  points[0], labels[0] = _pixel(mask, rng), POSITIVE
  if kind == 'two_points':
    outside = rng.random() < 0.5 and not mask.all()
    points[1] = _pixel(mask == 0 if outside else mask, rng)
    labels[1] = NEGATIVE if outside else POSITIVE
  return points, labels


def _pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
  """Draws a pixel (x, y) of `mask` uniformly."""
  pixels = np.flatnonzero(mask)
  y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
  return x, y


def _box(mask: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
  """The bounding box [[left, top], [right, bottom]] of `mask`, with each side jittered within the square."""
  columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
  corners = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float32)
  lengths = corners[1] - corners[0] + 1
  moved = corners + rng.uniform(-jitter, jitter, (2, 2)) * lengths
  return np.clip(moved, 0, np.array(mask.shape[::-1]) - 1)
