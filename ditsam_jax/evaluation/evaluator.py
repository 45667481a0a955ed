"""Scores a model on a split: every (object, expression), both protocols, per kind of expression."""

import csv
import dataclasses
import functools
import io
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import tqdm
from flax import nnx

from ditsam_jax.data.pipeline import Batch, EvaluationSample, evaluation_batches
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.data.tokenization import Tokenizer
from ditsam_jax.evaluation.metrics import mask_iou, rates
from ditsam_jax.evaluation.oracles import ORACLES, chances
from ditsam_jax.evaluation.pictures import Gallery
from ditsam_jax.evaluation.protocols import PROTOCOLS, fills_square, logit
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam

Forward = Callable[[Batch], jax.Array]

_TABLE_METRICS = ('mIoU', 'oIoU', 'P@0.50', 'P@0.60', 'P@0.70', 'P@0.80', 'P@0.90')


class SampleScore(NamedTuple):
  """One (object, expression) and its IoU (0 to 1) by either protocol."""
  image_id: int
  object_id: int
  kind: str
  expression: str
  iou_release: float
  iou_standard: float


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
  """Pixel counts of every sample, and what follows from them.

  Attributes:
    samples: in the order of the split.
    overlaps: intersection and union by protocol, int64 [N, 2].
    chances: expected IoU of each of oracles.ORACLES, float64 [N, 2]; None for data sets other than shapes.
  """
  samples: list[SampleScore]
  overlaps: dict[str, np.ndarray]
  chances: np.ndarray | None

  @property
  def miou(self) -> float:
    """mIoU in percent, release protocol."""
    return self.metrics()['mIoU']

  @property
  def kinds(self) -> list[str]:
    """The kinds of expression, sorted; none for data sets without."""
    return sorted({sample.kind for sample in self.samples} - {''})

  @property
  def protocols_agree(self) -> bool:
    """Whether both protocols saw the same masks, as they do where no image was resized."""
    return np.array_equal(*self.overlaps.values())

  def metrics(self, protocol: str = 'release', kind: str | None = None) -> dict[str, float]:
    """mIoU, oIoU, P@0.50 .. P@0.95 in percent, of all samples or of one kind of expression."""
    return rates(*self.overlaps[protocol][self._of(kind)].T)

  def chance(self, kind: str | None = None) -> dict[str, float]:
    """mIoU in percent expected of guessing with perfect masks, by oracle; empty where unknown."""
    if self.chances is None:
      return {}
    return dict(zip(ORACLES, (100 * self.chances[self._of(kind)].mean(0)).tolist()))

  def to_json(self) -> dict[str, Any]:
    """Plain containers: samples, release, standard, chance, and the same under each of kinds."""
    return {**self._figures(None), 'kinds': {kind: self._figures(kind) for kind in self.kinds}}

  def to_csv(self) -> str:
    """`samples` as CSV with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(SampleScore._fields)
    writer.writerows((*sample[:-2], *(f'{iou:.6f}' for iou in sample[-2:])) for sample in self.samples)
    return text.getvalue()

  def table(self) -> str:
    """The main figures in aligned columns, for people; one block where both protocols agree."""
    if self.protocols_agree:
      return self._block('release', 'release = standard protocol (no image was resized)')
    return '\n\n'.join(self._block(protocol, f'{protocol} protocol') for protocol in PROTOCOLS)

  def _of(self, kind: str | None) -> np.ndarray:
    return np.array([kind is None or sample.kind == kind for sample in self.samples], bool)

  def _figures(self, kind: str | None) -> dict[str, Any]:
    figures = {'samples': int(self._of(kind).sum())}
    figures |= {protocol: self.metrics(protocol, kind) for protocol in PROTOCOLS}
    return figures | ({'chance': self.chance(kind)} if self.chances is not None else {})

  def _block(self, protocol: str, title: str) -> str:
    oracles = ORACLES if self.chances is not None else ()
    rows = [['', 'samples', *_TABLE_METRICS, *oracles]]
    for kind in (None, *self.kinds):
      figures = [*map(self.metrics(protocol, kind).get, _TABLE_METRICS), *self.chance(kind).values()]
      rows.append([kind or 'all', f'{self._of(kind).sum():,}', *(f'{figure:.2f}' for figure in figures)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ['  '.join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    guessing = '; the last two: mIoU of guessing with perfect masks' if oracles else ''
    return '\n'.join([f'{title}, percent{guessing}', *lines])


def forward_of(model: DitSam) -> Forward:
  """The model as a jitted function of a batch: logits f32 [B, S, S]; always in evaluation mode.

  Models of the same structure share what is compiled, so weights may change between evaluations.
  """
  graph, state = nnx.split(model)
  state = jax.device_put(state)
  return lambda batch: _logits(graph, state, batch['image'], batch['token_ids'], batch['token_mask'])


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, images: jax.Array, token_ids: jax.Array, token_mask: jax.Array) -> jax.Array:
  model = nnx.merge(graph, state)
  model.eval()
  return model(images, token_ids, token_mask).logits


def evaluate_split(
    forward: Forward, source: ReferringSource, tokenizer: Tokenizer, model_config: DitSamConfig, *,
    batch_size: int = 64, limit: int | None = None, gallery: Gallery | None = None, progress: bool = True,
) -> Results:
  """Scores `forward` on every (object, expression) of a split.

  Args:
    forward: a batch to logits [B, S, S], see `forward_of`.
    source: the split.
    tokenizer: the model's.
    model_config: the model's; its size, normalisation and mask threshold are used.
    batch_size: samples the model gets at once.
    limit: so many samples, evenly spread, instead of all.
    gallery: is offered every sample.
    progress: a bar on stderr.

  Raises:
    UserError: nothing to evaluate.
  """
  batches = evaluation_batches(
      source, tokenizer, image_size=model_config.image_size, pixel_mean=model_config.pixel_mean,
      pixel_std=model_config.pixel_std, batch_size=batch_size, limit=limit)
  total = int(sum(source.expression_counts))
  with tqdm.tqdm(total=total if limit is None else min(limit, total), desc=f'evaluating {source.split}',
                 unit=' samples', disable=not progress, leave=False, mininterval=0.5) as bar:
    return evaluate(
        forward, batches, threshold=model_config.mask_threshold, gallery=gallery, advance=bar.update)


def evaluate(
    forward: Forward, batches: Iterable[tuple[Batch, list[EvaluationSample]]], *, threshold: float,
    gallery: Gallery | None = None, advance: Callable[[int], Any] = lambda count: None,
) -> Results:
  """Scores `forward` on pairs of a batch and what is known of its rows, as from `evaluation_batches`.

  `threshold`: on the sigmoid. `advance` is called with the number of samples done since the last call.
  """
  samples, overlaps, chance_rows = [], [], []
  for batch, infos, logits in _computed_ahead(forward, batches):
    valid = np.flatnonzero(batch['valid'])
    predictions = logits > logit(threshold)
    counts = _overlaps(logits, predictions, batch['mask'], infos, threshold)[valid]
    ious = mask_iou(counts[..., 0], counts[..., 1]).tolist()
    for row, both in zip(valid, ious):
      info = infos[row]
      samples.append(SampleScore(info.image_id, info.object_id, info.kind, info.expression, *both))
      # Only the sentences of shapes have a kind, and only their colours an oracle can read.
      if info.kind:
        chance_rows.append(chances(info.expression, info.image_categories, info.object_index))
      if gallery:
        gallery.offer(batch['image'][row], info, predictions[row], batch['mask'][row], both[0])
    overlaps.append(counts)
    advance(len(valid))
  by_protocol = dict(zip(PROTOCOLS, np.moveaxis(np.concatenate(overlaps), 1, 0)))
  return Results(samples, by_protocol, np.array(chance_rows) if len(chance_rows) == len(samples) else None)


def _computed_ahead(
    forward: Forward, batches: Iterable[tuple[Batch, list[EvaluationSample]]],
) -> Iterator[tuple[Batch, list[EvaluationSample], np.ndarray]]:
  """Batches with their logits; the device works on one while the caller scores the one before."""
  waiting = None
  for batch, infos in batches:
    begun = batch, infos, forward(batch)
    if waiting:
      yield *waiting[:2], np.asarray(waiting[2])
    waiting = begun
  if waiting:
    yield *waiting[:2], np.asarray(waiting[2])


def _overlaps(
    logits: np.ndarray, predictions: np.ndarray, targets: np.ndarray, infos: list[EvaluationSample],
    threshold: float,
) -> np.ndarray:
  """Intersection and union in pixels, int64 [B, protocols, 2], of logits and bool or 0/1 masks [B, S, S]."""
  size = logits.shape[-1]
  on_square = _counts(predictions, targets.astype(bool))
  overlaps = np.repeat(on_square[:, None], len(PROTOCOLS), axis=1)
  for row, info in enumerate(infos):
    if not fills_square(info.letterbox, info.original_size, size):
      masks = [mask_of(logits[row], info.letterbox, info.original_size, threshold)
               for mask_of in PROTOCOLS.values()]
      overlaps[row] = _counts(np.stack(masks), info.mask[None])
  return overlaps


def _counts(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
  """Intersection and union, int64 [N, 2], of bool masks [N, h, w]."""
  intersection = _areas(predictions & truths)
  union = _areas(predictions | truths)
  return np.stack([intersection, union], -1)


def _areas(masks: np.ndarray) -> np.ndarray:
  # Ten times as fast as count_nonzero with axes, which widens every pixel to 64 bits.
  return np.array([np.count_nonzero(mask) for mask in masks], np.int64)
