"""Results of an evaluation: pixel counts per sample, and the metrics, tables and files derived from them."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from ditsam_jax.evaluation.bootstrap import intervals
from ditsam_jax.evaluation.breakdowns import BREAKDOWNS
from ditsam_jax.evaluation.metrics import generalised_rates, mask_iou, rates
from ditsam_jax.evaluation.oracles import ORACLES
from ditsam_jax.terminal import aligned

# Table columns and the metric whose interval follows each, if any. gIoU and cIoU are the mIoU and oIoU of samples that
# may have no target.
_COLUMNS = {
  'mIoU': 'mIoU',
  'oIoU': 'oIoU',
  'P@0.50': None,
  'P@0.60': None,
  'P@0.70': None,
  'P@0.80': None,
  'P@0.90': None,
}
_GENERALISED_COLUMNS = {
  'gIoU': 'mIoU',
  'cIoU': 'oIoU',
  'N-acc': None,
  'T-acc': None,
  'Pr@0.70': None,
  'Pr@0.80': None,
  'Pr@0.90': None,
}
_SAME_MASKS = 'release = standard protocol (the masks are the same)'


class Sample(NamedTuple):
  """An (object, expression) pair; pixels are at the image's own size."""

  position: int  # in the split
  image_id: int
  object_id: int
  kind: str
  expression: str
  target_pixels: int  # 0 if the expression has no target
  image_pixels: int


class Score(NamedTuple):
  """The score of one sample, as plain values that hosts can exchange."""

  sample: Sample
  overlaps: list[list[int]]  # intersection and union by protocol
  chances: tuple[float, float] | None  # expected IoU of oracles.ORACLES; None for data sets other than shapes


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """Pixel counts of all samples, and the metrics derived from them.

  Attributes:
    samples: the samples, in the order of the split.
    overlaps: intersection and union by protocol, int64 [N, 2].
    chances: expected IoU of oracles.ORACLES, float64 [N, 2]; None for data sets other than shapes.
    generalised: expressions may have no target, so gRefCOCO's metrics are reported too.
  """

  samples: list[Sample]
  overlaps: dict[str, np.ndarray]
  chances: np.ndarray | None
  generalised: bool = False
  _known_intervals: dict = dataclasses.field(default_factory=dict, init=False, repr=False)

  @classmethod
  def of(cls, scores: Iterable[Score], protocols: Iterable[str], *, generalised: bool = False) -> 'Results':
    """Collects scores in any order. They are sorted before summation, so the order does not affect rounding."""
    scores = sorted(scores, key=lambda score: score[0][0])
    samples = [Sample(*sample) for sample, _, _ in scores]
    counts = np.array([overlaps for _, overlaps, _ in scores], np.int64).reshape(len(scores), -1, 2)
    chances = [chance for _, _, chance in scores]
    return cls(
      samples,
      dict(zip(protocols, np.moveaxis(counts, 1, 0))),
      None if None in chances else np.array(chances),
      generalised or any(not sample.target_pixels for sample in samples),
    )

  @property
  def protocols(self) -> list[str]:
    """Names of the protocols; the first one is used for headline figures."""
    return list(self.overlaps)

  @property
  def miou(self) -> float:
    """mIoU in percent, by the first protocol."""
    return self.metrics()['mIoU']

  @property
  def kinds(self) -> list[str]:
    """The kinds of expression, sorted; empty for data sets without kinds."""
    return sorted({sample.kind for sample in self.samples} - {''})

  @property
  def protocols_agree(self) -> bool:
    """Whether both protocols give the same masks, which is the case if no image was resized."""
    first, *others = self.overlaps.values()
    return bool(others) and all(np.array_equal(first, other) for other in others)

  def iou(self, protocol: str | None = None) -> np.ndarray:
    """IoU (0 to 1) of each sample, float64 [N]."""
    return mask_iou(*self.overlaps[protocol or self.protocols[0]].T)

  def metrics(self, protocol: str | None = None, kind: str | None = None) -> dict[str, float]:
    """mIoU, oIoU, P@0.50 .. P@0.95 (and gRefCOCO's metrics) in percent, for all samples or one kind of expression."""
    return self._metrics(protocol or self.protocols[0], self._of(kind))

  def breakdowns(self) -> dict[str, dict[str, np.ndarray]]:
    """The non-empty groups of each of BREAKDOWNS: bool [N] by label."""
    groups = {}
    for breakdown in BREAKDOWNS:
      labels = np.array([breakdown.label(sample) for sample in self.samples])
      groups[breakdown.name] = {label: rows for label in breakdown.labels if (rows := labels == label).any()}
    return groups

  def to_json(self) -> dict[str, Any]:
    """The figures as JSON-serialisable containers, for all samples, for each kind, and for each group of breakdowns."""
    return {
      **self._figures(self._of(None)),
      'kinds': {kind: self._figures(self._of(kind)) for kind in self.kinds},
      'breakdowns': {
        name: {label: self._figures(rows) for label, rows in groups.items()}
        for name, groups in self.breakdowns().items()
      },
    }

  def to_csv(self) -> str:
    """Formats a CSV with one line per sample: the fields of Sample, then IoU, intersection and union by protocol."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(
      [
        *Sample._fields,
        *(f'{name}_{protocol}' for protocol in self.overlaps for name in ('iou', 'intersection', 'union')),
      ]
    )
    columns = []
    for protocol, overlaps in self.overlaps.items():
      columns += [[f'{iou:.6f}' for iou in self.iou(protocol)], *overlaps.T.tolist()]
    writer.writerows((*sample, *row) for sample, *row in zip(self.samples, *columns))
    return text.getvalue()

  def table(self) -> str:
    """Formats the main metrics, in total and by kind, as a text table; one block if both protocols agree."""
    rows = {'all': self._of(None), **{kind: self._of(kind) for kind in self.kinds}}
    return '\n\n'.join(self._block(protocol, title, rows) for protocol, title in self._titles())

  def breakdown_table(self) -> str:
    """Formats the same table for the groups of all breakdowns."""
    rows = {f'{name}: {label}': rows for name, groups in self.breakdowns().items() for label, rows in groups.items()}
    return '\n\n'.join(self._block(protocol, title, rows) for protocol, title in self._titles())

  def _titles(self) -> Iterator[tuple[str, str]]:
    if self.protocols_agree:
      yield self.protocols[0], _SAME_MASKS
    else:
      yield from ((protocol, f'{protocol} protocol') for protocol in self.protocols)

  def _of(self, kind: str | None) -> np.ndarray:
    return np.array([kind is None or sample.kind == kind for sample in self.samples], bool)

  def _metrics(self, protocol: str, rows: np.ndarray) -> dict[str, float]:
    intersection, union = self.overlaps[protocol][rows].T
    if not self.generalised:
      return rates(intersection, union)
    targets = np.array([sample.target_pixels for sample in self.samples], np.int64)[rows]
    return rates(intersection, union) | generalised_rates(intersection, union, targets)

  def _intervals(self, protocol: str, rows: np.ndarray) -> dict[str, tuple[float, float]]:
    # Cached, because tables and JSON need the same intervals, and bootstrapping a large split takes a while.
    key = self.protocols[0] if self.protocols_agree else protocol, rows.tobytes()
    if key not in self._known_intervals:
      images = np.array([sample.image_id for sample in self.samples])[rows]
      self._known_intervals[key] = intervals(images, self.overlaps[protocol][rows])
    return self._known_intervals[key]

  def _chance(self, rows: np.ndarray) -> dict[str, float]:
    """Expected mIoU in percent of guessing with perfect masks, by oracle; empty if unknown."""
    return {} if self.chances is None else dict(zip(ORACLES, (100 * self.chances[rows].mean(0)).tolist()))

  def _figures(self, rows: np.ndarray) -> dict[str, Any]:
    figures: dict[str, Any] = {'samples': int(rows.sum())}
    for protocol in self.protocols:
      ranges = {name: list(ends) for name, ends in self._intervals(protocol, rows).items()}
      figures[protocol] = {**self._metrics(protocol, rows), 'intervals': ranges}
    return figures | ({'chance': self._chance(rows)} if self.chances is not None else {})

  def _block(self, protocol: str, title: str, groups: dict[str, np.ndarray]) -> str:
    columns = _GENERALISED_COLUMNS if self.generalised else _COLUMNS
    oracles = ORACLES if self.chances is not None else ()
    header = [cell for name, interval in columns.items() for cell in (name, *(['95 %'] if interval else []))]
    lines = [['', 'samples', *header, *oracles]]
    for label, rows in groups.items():
      figures, ranges = self._metrics(protocol, rows), self._intervals(protocol, rows)
      cells = [label, f'{rows.sum():,}']
      for name, interval in columns.items():
        cells.append(f'{figures[name]:.2f}' if name in figures else '-')
        if interval:
          cells.append('[{:.2f}, {:.2f}]'.format(*ranges[interval]))
      lines.append(cells + [f'{chance:.2f}' for chance in self._chance(rows).values()])
    guessing = '; the last two: mIoU of guessing with perfect masks' if oracles else ''
    return '\n'.join([f'{title}, percent{guessing}', *aligned(lines)])
