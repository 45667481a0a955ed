"""Draws the first prompt of each target from masks, as in SAM's training: a click, a box, or nothing."""

import dataclasses

import numpy as np

from ditsam_jax.fields import SHARE, Real, check_shares, declared
from ditsam_jax.models.prompt_encoder import ABSENT, BOTTOM_RIGHT, PADDING, POSITIVE, TOP_LEFT

KINDS = ('point', 'box', 'background', 'none')
POINTS = 2  # per prompt: a point and SAM's padding, or the two corners of a box


@dataclasses.dataclass(frozen=True)
class PromptConfig:
  """The share of each kind of prompt; the four shares add up to 1."""

  point: float = declared(0.5, SHARE, 'Share of clicks on an object')
  box: float = declared(0.4, SHARE, 'Share of boxes around an object')
  background: float = declared(
    0.0, SHARE, 'Share of clicks beside all objects, with an empty target; needs images with all objects annotated'
  )
  none: float = declared(0.1, SHARE, 'Share of no prompt at all; the target is all objects together')
  box_jitter: float = declared(0.1, Real(0, 0.5), "Each side of a box moves by up to this share of the box's length")

  def __post_init__(self):
    check_shares('prompts', {kind: getattr(self, kind) for kind in KINDS})


def draw_kind(config: PromptConfig, rng: np.random.Generator) -> str:
  """Draws one of KINDS."""
  return KINDS[rng.choice(len(KINDS), p=[getattr(config, kind) for kind in KINDS])]


def draw_target(
  kind: str,
  masks: np.ndarray,
  index: int,
  config: PromptConfig,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Draws a prompt and its target: points float32 [POINTS, 2], labels int32 [POINTS], target uint8 [h, w].

  Points are (x, y) in pixels, with pixel centres at whole-numbered coordinates (SAM adds the half itself). If no pixel
  can be clicked (an empty mask, or an image without background), the prompt is empty and the target unchanged.

  Args:
    kind: one of KINDS.
    masks: 0/1 [n, h, w], the masks of all objects, without padding, which has no prompts.
    index: index of the target object of a click or box.
    config: gives the jitter of boxes.
    rng: source of randomness.
  """
  points = np.zeros((POINTS, 2), np.float32)
  labels = np.full(POINTS, ABSENT, np.int32)
  if kind == 'none':
    return points, labels, masks.max(0)
  target = np.zeros_like(masks[0]) if kind == 'background' else masks[index]
  clickable = masks.max(0) == 0 if kind == 'background' else target
  if not clickable.any():
    return points, labels, target
  if kind == 'box':
    points[:] = _box(target, config.box_jitter, rng)
    labels[:] = TOP_LEFT, BOTTOM_RIGHT
  else:
    points[0] = _pixel(clickable, rng)
    labels[:] = POSITIVE, PADDING
  return points, labels, target


def _pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
  """Draws a pixel (x, y) of `mask` uniformly."""
  pixels = np.flatnonzero(mask)
  y, x = divmod(int(pixels[rng.integers(len(pixels))]), mask.shape[1])
  return x, y


def _box(mask: np.ndarray, jitter: float, rng: np.random.Generator) -> np.ndarray:
  """The bounding box [[left, top], [right, bottom]] of `mask`, with each side jittered within the image."""
  columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
  corners = np.array([[columns[0], rows[0]], [columns[-1], rows[-1]]], np.float32)
  lengths = corners[1] - corners[0] + 1
  moved = corners + rng.uniform(-jitter, jitter, (2, 2)) * lengths
  return np.clip(moved, 0, np.array(mask.shape[::-1]) - 1)
