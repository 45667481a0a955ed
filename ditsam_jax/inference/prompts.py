"""Prompts (text, points, a box and a mask in any combination) and their validation."""

import dataclasses
from typing import Any

import numpy as np

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.prompt_encoder import ABSENT, BOTTOM_RIGHT, NEGATIVE, PADDING, POSITIVE, TOP_LEFT
from ditsam_jax.terminal import printable, truncated
from ditsam_jax.tokenization import MAX_TEXT_BYTES

MOST_POINTS = 1000
FURTHEST = 1e8  # pixels from the image's corner; longer than any readable image
LARGEST_LOGIT = 1e6  # of a mask prompt; larger values overflow in the norm

_FEWEST_TOKENS = 8
_TEXT_EXPECTED = "expected words that name an object, such as 'the red circle'"


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
  """What to segment. All given parts are combined; None omits a part.

  Attributes:
    text: a sentence, for models with a text encoder.
    points: [P, 2], (x, y) in pixels of the image; may lie outside it.
    labels: [P], 1 for points on the object, 0 for points off it; None if all points are on it.
    box: [4], (x0, y0, x1, y1) in pixels of the image.
    mask: f32 [S/4, S/4] or [1, S/4, S/4], from the `low_res_logits` of an earlier prediction.
    multimask: return three masks instead of one, for ambiguous prompts such as a single click.
  """

  text: str | None = None
  points: Any = None
  labels: Any = None
  box: Any = None
  mask: Any = None
  multimask: bool = False

  @property
  def is_empty(self) -> bool:
    """Whether the prompt is empty: no text, points, box or mask."""
    return all(part is None for part in (self.text, self.points, self.box, self.mask))

  def __repr__(self) -> str:
    parts = [f'{name}={value!r}' for name, value in (('text', self.text),) if value is not None]
    for name in ('points', 'labels', 'box'):
      if (value := getattr(self, name)) is not None:
        shown = repr(value.tolist() if isinstance(value, np.ndarray) else value)
        parts.append(f'{name}={shown if len(shown) <= 80 else f"<{len(value)}>"}')
    parts += ['mask=<given>'] if self.mask is not None else []
    parts += ['multimask=True'] if self.multimask else []
    return f'Prompt({", ".join(parts)})'


def checked(prompt: Prompt, config: DitSamConfig) -> Prompt:
  """Checks a prompt and converts its parts to arrays: points f64 [P, 2], labels i32 [P], box f64 [4], mask f32.

  Raises:
    UserError: a part has the wrong type or shape, is out of bounds, or is not supported by the model.
  """
  if not isinstance(prompt, Prompt):
    raise UserError(f'a prompt of type {type(prompt).__name__}: expected a text or a Prompt')
  if prompt.text is not None:
    check_text(prompt.text)
    if config.text_encoder is None:
      raise UserError(
        f'text {_quoted(prompt.text)}: this model has no text encoder; prompt it with points, a box or a mask'
      )
  points, labels = _checked_points(prompt.points, prompt.labels)
  if not isinstance(prompt.multimask, bool | np.bool_):
    raise UserError(f'multimask {prompt.multimask!r}: expected True or False')
  return Prompt(
    prompt.text, points, labels, _checked_box(prompt.box), _checked_mask(prompt.mask, config), bool(prompt.multimask)
  )


def in_words(prompt: Prompt) -> str:
  """Describes a checked prompt in a few words: "'the red circle', 2 points, a box"."""
  parts = [] if prompt.text is None else [f"'{printable(prompt.text, 100)}'"]
  if prompt.points is not None:
    parts.append(f'{len(prompt.points)} point{"s" if len(prompt.points) > 1 else ""}')
  if prompt.box is not None:
    parts.append('a box')
  return ', '.join(parts) or 'everything'


def point_tokens(prompt: Prompt, scale: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
  """Converts a checked prompt's points and box corners to decoder tokens; None if there are none but text.

  Tokens are padded to 8, 16, 32, ... and masked: extra tokens cost almost nothing next to the image's, but compiling a
  new program costs seconds.

  Args:
    prompt: points and box in pixels of the image.
    scale: f64 [2], maps pixels of the image to pixels of the model's square.
    offset: f64 [2], added after scaling.

  Returns:
    (x, y) f32 [N, 2] and SAM's labels int32 [N].
  """
  points = np.zeros((0, 2)) if prompt.points is None else prompt.points
  labels = [] if prompt.labels is None else prompt.labels
  corners = np.zeros((0, 2)) if prompt.box is None else prompt.box.reshape(2, 2)
  if prompt.text is not None and not len(points) and not len(corners):
    return None
  padding = (PADDING,) if len(points) and not len(corners) else ()  # SAM adds one to points without a box
  used = [*labels, *padding, *(TOP_LEFT, BOTTOM_RIGHT)[: len(corners)]]
  count = max(_FEWEST_TOKENS, 1 << (len(used) - 1).bit_length())
  xy = np.zeros((count, 2))
  xy[: len(points)] = points
  xy[len(points) + len(padding) : len(used)] = corners
  return (xy * scale + offset).astype(np.float32), np.array(used + [ABSENT] * (count - len(used)), np.int32)


def check_text(text: str) -> None:
  """Raises UserError unless `text` is a non-blank string of at most MAX_TEXT_BYTES."""
  if not isinstance(text, str):
    raise UserError(f'a text of type {type(text).__name__}: {_TEXT_EXPECTED}')
  if not any(character.isprintable() and not character.isspace() for character in text):
    raise UserError(f'text {_quoted(text)}: nothing to read; {_TEXT_EXPECTED}')
  if any('\ud800' <= character <= '\udfff' for character in text):
    raise UserError(f'text {_quoted(text)}: not valid Unicode; {_TEXT_EXPECTED}')
  if (size := len(text.encode())) > MAX_TEXT_BYTES:
    raise UserError(f'text {_quoted(text)}: {size:,} bytes; expected at most {MAX_TEXT_BYTES:,}')


def _quoted(text: str) -> str:
  return repr(truncated(text, 60))


def _checked_points(points: Any, labels: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
  if points is None and labels is not None:
    raise UserError('labels without points: expected points [P, 2] with labels [P], 1 on the object and 0 off it')
  if points is None:
    return None, None
  expected = '[P, 2], an (x, y) each'
  points = _numbers('points', points, expected, FURTHEST)
  if points.ndim != 2 or points.shape[1] != 2 or not len(points):
    raise UserError(f'points have shape {points.shape}: expected {expected}; None for no points')
  if len(points) > MOST_POINTS:
    raise UserError(f'{len(points):,} points: expected at most {MOST_POINTS:,} in one prompt')
  if labels is None:
    return points, np.full(len(points), POSITIVE, np.int32)
  labels = _numbers('labels', labels, '[P], 1 or 0 each', FURTHEST)
  if labels.shape != points.shape[:1]:
    raise UserError(f'labels have shape {labels.shape}: expected ({len(points)},), one for each point')
  wrong = labels[(labels != NEGATIVE) & (labels != POSITIVE)]
  if len(wrong):
    raise UserError(f'label {wrong[0]:g}: expected 1 for points on the object and 0 for points off it')
  return points, labels.astype(np.int32)


def _checked_box(box: Any) -> np.ndarray | None:
  if box is None:
    return None
  expected = '[4], (x0, y0, x1, y1)'
  corners = _numbers('box', box, expected, FURTHEST)
  if corners.shape != (4,):
    raise UserError(f'box has shape {corners.shape}: expected {expected}')
  if (corners[:2] > corners[2:]).any():
    raise UserError(f'box {corners.tolist()}: expected (x0, y0, x1, y1) with x0 <= x1 and y0 <= y1')
  return corners


def _checked_mask(mask: Any, config: DitSamConfig) -> np.ndarray | None:
  if mask is None:
    return None
  side = 4 * config.grid
  expected = f"({side}, {side}), one of an earlier prediction's low_res_logits"
  array = _numbers('mask', mask, expected, LARGEST_LOGIT)
  if array.shape not in ((side, side), (1, side, side)):
    raise UserError(f'mask has shape {array.shape}: expected {expected}')
  return array.reshape(side, side).astype(np.float32)


def _numbers(name: str, value: Any, expected: str, largest: float) -> np.ndarray:
  try:
    array = np.asarray(value, np.float64)
  except (TypeError, ValueError, OverflowError) as error:
    raise UserError(f'{name}: not an array of numbers ({error}); expected {expected}') from error
  if not np.isfinite(array).all():
    raise UserError(f'{name}: NaN or infinite numbers; expected finite ones, {expected}')
  if array.size and (most := np.abs(array).max()) > largest:
    raise UserError(f'{name}: a number of size {most:g}; expected at most {largest:g}, {expected}')
  return array
