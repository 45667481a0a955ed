"""Results of corrections by clicks: IoU after each click, and the number of clicks needed."""

import csv
import dataclasses
import io
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.evaluation.metrics import mask_iou
from ditsam_jax.evaluation.results import Sample
from ditsam_jax.terminal import aligned

TARGETS = (0.8, 0.9)


class ClickScore(NamedTuple):
  """Intersection and union, in pixels, of one sample's masks, as plain values that hosts can exchange."""

  sample: Sample
  sentence: list[tuple[int, int]]  # of the sentence, and after each click
  clicks: list[tuple[int, int]]  # after each click without the sentence


@dataclasses.dataclass(frozen=True, eq=False)
class ClickResults:
  """IoU of all samples after each click.

  Attributes:
    samples: the samples, in the order of the split.
    sentence: IoU (0 to 1) of the sentence's mask and after each of K clicks, float64 [N, 1 + K].
    clicks: IoU after each click without the sentence, float64 [N, K].
  """

  samples: list[Sample]
  sentence: np.ndarray
  clicks: np.ndarray

  @classmethod
  def of(cls, scores: Iterable[ClickScore], clicks: int) -> 'ClickResults':
    """Collects scores in any order."""
    scores = sorted(scores, key=lambda score: score[0][0])

    def ious(part: int, rounds: int) -> np.ndarray:
      counts = np.array([score[part] for score in scores], np.int64).reshape(len(scores), rounds, 2)
      return mask_iou(counts[..., 0], counts[..., 1])

    return cls([Sample(*score[0]) for score in scores], ious(1, 1 + clicks), ious(2, clicks))

  @property
  def count(self) -> int:
    """The number of clicks per sample."""
    return self.clicks.shape[1]

  def figures(self, kind: str | None = None) -> dict[str, Any]:
    """mIoU in percent after each number of clicks and NoC, for all samples or one kind of expression.

    NoC, the number of clicks, is the mean over samples of the clicks until the IoU reaches a target, 0 for samples
    whose sentence is enough; a sample that never reaches it counts with all clicks, and in 'missed', in percent.
    """
    rows = np.array([kind is None or sample.kind == kind for sample in self.samples], bool)
    return {
      'samples': int(rows.sum()),
      'sentence': _figures(self.sentence[rows], 0),
      'clicks': _figures(self.clicks[rows], 1),
    }

  @property
  def kinds(self) -> list[str]:
    """The kinds of expression, sorted; empty for data sets without kinds."""
    return sorted({sample.kind for sample in self.samples} - {''})

  def to_json(self) -> dict[str, Any]:
    """All figures as JSON-serialisable containers."""
    return {'clicks': self.count, **self.figures(), 'kinds': {kind: self.figures(kind) for kind in self.kinds}}

  def table(self) -> str:
    """Formats mIoU and NoC, in total and by kind, as a text table."""
    numbers = ['no click', '1 click', *(f'{number} clicks' for number in range(2, 1 + self.count))]
    lines = [['', 'samples', *numbers, *(f'NoC@{100 * x:.0f}' for x in TARGETS), *(f'missed {x}' for x in TARGETS)]]
    for kind in (None, *self.kinds):
      figures = self.figures(kind)
      for name, title in (('sentence', 'sentence, then clicks'), ('clicks', 'clicks alone')):
        part = figures[name]
        means = [f'{value:.2f}' for value in part['mIoU']]
        lines.append(
          [
            f'{kind or "all"}: {title}',
            f'{figures["samples"]:,}',
            *['-'] * (1 + self.count - len(means)),
            *means,
            *(f'{part["NoC"][target]:.2f}' for target in part['NoC']),
            *(f'{part["missed"][target]:.2f}' for target in part['missed']),
          ]
        )
    return '\n'.join(
      [
        'mIoU in percent; NoC: mean clicks to reach this IoU; missed: percent of samples that do not reach it',
        *aligned(lines),
      ]
    )

  def to_csv(self) -> str:
    """Formats a CSV with one line per sample: the fields of Sample, then each IoU."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    spoken = [f'iou_sentence_{number}' for number in range(1 + self.count)]
    silent = [f'iou_clicks_{number}' for number in range(1, 1 + self.count)]
    writer.writerow([*Sample._fields, *spoken, *silent])
    for sample, *ious in zip(self.samples, self.sentence, self.clicks):
      writer.writerow([*sample, *(f'{iou:.6f}' for iou in np.concatenate(ious))])
    return text.getvalue()


def _figures(ious: np.ndarray, first: int) -> dict[str, Any]:
  """Figures of IoUs [N, R], of which column 0 was reached with `first` clicks."""
  most = first + ious.shape[1] - 1
  needed = {x: np.where((ious >= x).any(1), first + (ious >= x).argmax(1), most) for x in TARGETS}
  return {
    'mIoU': (100 * ious.mean(0)).tolist(),
    'NoC': {str(x): float(clicks.mean()) for x, clicks in needed.items()},
    'missed': {str(x): 100 * float((~(ious >= x).any(1)).mean()) for x in TARGETS},
  }
