"""The result of one prompt on one image."""

import dataclasses
import functools
from typing import Any

import numpy as np
from PIL import Image

from ditsam_jax.geometry.masks import bounding_box, encode_rle
from ditsam_jax.inference.prompts import Prompt


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Prediction:
  """The result of one prompt on one image: M masks at the image's own size, 3 with `multimask`, else 1.

  `mask`, `score`, `area`, `box`, `probability` and `rle()` belong to the mask with the highest score.

  Attributes:
    prompt: the prompt, as arrays (see `prompts.checked`).
    image: uint8 [h, w, 3].
    masks: bool [M, h, w].
    scores: f32 [M], the predicted IoU of each mask; trained towards 0..1, but not clipped.
    logits: f32 [M, h, w]; pixels above the model's threshold belong to the mask.
    low_res_logits: f32 [M, 4g, 4g] in the model's square, for g x g patches; each can be used as a mask prompt.
    cut: the end of the sentence that exceeds the model's token limit; usually ''.
    unknown: words of the sentence that are missing from the vocabulary.
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
    """Index of the mask with the highest score."""
    return int(self.scores.argmax())

  @property
  def mask(self) -> np.ndarray:
    """The best mask, bool [h, w]."""
    return self.masks[self.best]

  @property
  def score(self) -> float:
    """Predicted IoU of the best mask."""
    return float(self.scores[self.best])

  @property
  def iou(self) -> float:
    """The same as `score`."""
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
    """[x0, y0, x1, y1] around each mask, with x1 and y1 exclusive; None for an empty mask."""
    return [box and list(box) for box in map(bounding_box, self.masks)]

  @property
  def box(self) -> list[int] | None:
    """[x0, y0, x1, y1] around the best mask, with x1 and y1 exclusive; None if it is empty."""
    return self.boxes[self.best]

  @property
  def probability(self) -> np.ndarray:
    """Probability of each pixel to belong to the best mask, f32 [h, w]."""
    return 0.5 + 0.5 * np.tanh(0.5 * self.logits[self.best])  # the sigmoid, without overflow

  def rle(self) -> dict[str, Any]:
    """The best mask as COCO run-length encoding, {'size': [h, w], 'counts': str}."""
    return encode_rle(self.mask)

  def rles(self) -> list[dict[str, Any]]:
    """All masks as COCO run-length encodings."""
    return [encode_rle(mask) for mask in self.masks]

  def overlay(self) -> Image.Image:
    """A PIL image with the best mask, the prompt and the score drawn over it."""
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
