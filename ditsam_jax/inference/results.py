"""What a prompt means in an image."""

import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.geometry.masks import bounding_box, encode_rle
from ditsam_jax.inference.prompts import Prompt


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
  """What a prompt means in an image: M masks at the image's own size, 3 with `multimask`, else 1.

  `mask`, `score`, `area`, `box`, `probability` and `rle()` are those of the mask with the best score.

  Attributes:
    prompt: what was asked, in the arrays of `prompts.checked`.
    image: uint8 [h, w, 3].
    masks: bool [M, h, w].
    scores: f32 [M], the model's own estimates of the masks' IoU; trained towards 0..1, not bound to it.
    logits: f32 [M, h, w]; the masks are where they exceed the model's threshold.
    low_res_logits: f32 [M, S/4, S/4] in the model's square of side S; one of them is a mask prompt.
    cut: the end of the sentence that the model did not read, for want of tokens; '' normally.
    unknown: words of the sentence that the model's vocabulary lacks.
  """

  prompt: Prompt
  image: np.ndarray
  masks: np.ndarray
  scores: np.ndarray
  logits: np.ndarray
  low_res_logits: np.ndarray
  cut: str = ''
  unknown: tuple[str, ...] = ()

  @property
  def text(self) -> str | None:
    """The sentence."""
    return self.prompt.text

  @property
  def best(self) -> int:
    """Which of the masks has the best score."""
    return int(self.scores.argmax())

  @property
  def mask(self) -> np.ndarray:
    """The best mask, bool [h, w]."""
    return self.masks[self.best]

  @property
  def score(self) -> float:
    """The model's own estimate of the best mask's IoU."""
    return float(self.scores[self.best])

  @property
  def iou(self) -> float:
    """`score`."""
    return self.score

  @functools.cached_property
  def areas(self) -> list[int]:
    """Pixels of each mask."""
    return [int(np.count_nonzero(mask)) for mask in self.masks]

  @property
  def area(self) -> int:
    """Pixels of the best mask."""
    return self.areas[self.best]

  @functools.cached_property
  def boxes(self) -> list[list[int] | None]:
    """[x0, y0, x1, y1] around each mask, without x1 and y1 themselves; None around an empty one."""
    return [box and list(box) for box in map(bounding_box, self.masks)]

  @property
  def box(self) -> list[int] | None:
    """[x0, y0, x1, y1] around the best mask, without x1 and y1 themselves; None if it is empty."""
    return self.boxes[self.best]

  @property
  def probability(self) -> np.ndarray:
    """The probability that a pixel belongs to the best mask, f32 [h, w]."""
    return 0.5 + 0.5 * np.tanh(0.5 * self.logits[self.best])  # the sigmoid, without overflow

  def rle(self) -> dict[str, Any]:
    """The best mask as COCO's run lengths, {'size': [h, w], 'counts': str}."""
    return encode_rle(self.mask)

  def rles(self) -> list[dict[str, Any]]:
    """All masks as COCO's run lengths."""
    return [encode_rle(mask) for mask in self.masks]

  def overlay(self) -> Image.Image:
    """The image with the best mask laid over it, the prompt and the score."""
    from ditsam_jax.inference.pictures import draw  # drawing is slow to import

    return Image.fromarray(draw(self.image, self.mask[None], self.prompt, self.scores[self.best :][:1]))

  def __repr__(self) -> str:
    height, width = self.image.shape[:2]
    share = self.area / max(1, height * width)
    found = f'{len(self.masks)} masks, best: ' if len(self.masks) > 1 else ''
    where = f'box {self.box}' if self.box else 'nothing found'
    notes = f', cut {self.cut!r}' if self.cut else ''
    notes += f', unknown {", ".join(map(repr, self.unknown))}' if self.unknown else ''
    return (
      f'<Prediction {self.prompt!r} in {width} x {height}: {found}{self.area:,} pixels ({share:.1%}), {where}, '
      f'score {self.score:.2f}{notes}>'
    )
