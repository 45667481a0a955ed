"""Scores a model on all (object, expression) pairs of a split, by both protocols."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ditsam_jax import fields
from ditsam_jax.data.batches import Batch
from ditsam_jax.data.evaluation_batches import EvaluationSample, evaluation_batches
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.evaluation.forward import Forward
from ditsam_jax.evaluation.metrics import mask_iou
from ditsam_jax.evaluation.oracles import chances
from ditsam_jax.evaluation.pictures import Gallery, Shown, shown
from ditsam_jax.evaluation.protocols import PROTOCOLS
from ditsam_jax.evaluation.results import Results, Sample, Score
from ditsam_jax.geometry.letterbox import fills_square, logit
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.parallel import distributed
from ditsam_jax.terminal import progress as bar_of
from ditsam_jax.tokenization import Tokenizer

_Batches = Iterable[tuple[Batch, list[EvaluationSample]]]


def evaluate_split(
  forward: Forward,
  source: ReferringSource,
  tokenizer: Tokenizer,
  model_config: DitSamConfig,
  *,
  batch_size: int = 64,
  limit: int | None = None,
  protocols: Sequence[str] = tuple(PROTOCOLS),
  generalised: bool = False,
  gallery: Gallery | None = None,
  progress: bool = True,
) -> Results:
  """Evaluates `forward` on all (object, expression) pairs of a split. Hosts share the work; all return all results.

  Args:
    forward: maps a batch to logits [B, S, S], see `forward_of`.
    source: the split.
    tokenizer: the model's tokenizer.
    model_config: the model's config, for the image size, normalisation and mask threshold.
    batch_size: samples per batch on each host.
    limit: evaluate this many samples, evenly spread, instead of all.
    protocols: some of PROTOCOLS.
    generalised: report gRefCOCO's metrics even if all expressions have a target.
    gallery: receives all samples of this host.
    progress: show a progress bar on stderr, on the first host.

  Raises:
    UserError: there is nothing to evaluate, or the model gives NaN.
  """
  host, hosts = distributed.place()
  batches = evaluation_batches(
    source, tokenizer, **_input(model_config), batch_size=batch_size, limit=limit, shard=(host, hosts)
  )
  total = int(sum(source.expression_counts))
  total = -(-(total if limit is None else min(limit, total)) // hosts)
  with bar_of(total, f'evaluating {source.split}', 'samples', shown=progress and host == 0, leave=False) as bar:
    guessed = source.split != 'train'  # which has sentences that the oracles do not parse
    found = list(scores(forward, batches, model_config.mask_threshold, protocols, gallery, bar.update, guessed))
  return Results.of(distributed.gathered(found), protocols, generalised=generalised)


def pictures_of(
  forward: Forward,
  source: ReferringSource,
  tokenizer: Tokenizer,
  model_config: DitSamConfig,
  results: Results,
  positions: Sequence[int],
  *,
  batch_size: int = 64,
) -> dict[int, Shown]:
  """Runs the model again on some samples of `results`, to show them; by position in the split.

  Which samples to show is known only at the end, when their images have been freed.
  """
  ious = dict(zip((sample.position for sample in results.samples), results.iou()))
  batches = evaluation_batches(
    source, tokenizer, **_input(model_config), batch_size=batch_size, positions=sorted(set(positions))
  )
  pictures = {}
  for batch, infos, logits in _pipelined(forward, batches):
    for row in np.flatnonzero(batch['valid']):
      info, prediction = infos[row], logits[row] > logit(model_config.mask_threshold)
      pictures[info.position] = shown(
        batch['image'][row],
        info,
        prediction,
        batch['mask'][row],
        ious[info.position],
        model_config.pixel_mean,
        model_config.pixel_std,
      )
  return pictures


def _input(config: DitSamConfig) -> dict[str, Any]:
  return {'image_size': config.image_size, 'pixel_mean': config.pixel_mean, 'pixel_std': config.pixel_std}


def scores(
  forward: Forward,
  batches: _Batches,
  threshold: float,
  protocols: Sequence[str],
  gallery: Gallery | None = None,
  advance: Callable[[int], Any] = lambda count: None,
  guess: bool = True,
) -> Iterator[Score]:
  """Yields the scores of `forward` on the batches of `evaluation_batches`.

  `threshold` applies to the sigmoid. `advance` is called with the number of samples completed since the last call.
  With `guess`, expressions of shapes also get the scores of guessing.

  Raises:
    UserError: logits are NaN, which would count as an empty mask.
  """
  for batch, infos, logits in _pipelined(forward, batches):
    for info, highest in zip(infos, logits.max((1, 2))):
      if np.isnan(highest):
        raise UserError(
          f'the model gives NaN for {fields.shown(info.expression)} on image {info.image_id}, expected numbers; '
          f'its weights have diverged: use an earlier model, or train it with a lower learning rate'
        )
    valid = np.flatnonzero(batch['valid'])
    predictions = logits > logit(threshold)
    overlaps = _overlaps(logits, predictions, batch['mask'], infos, threshold, protocols)
    ious = mask_iou(overlaps[:, 0, 0], overlaps[:, 0, 1])
    for row in valid:
      info = infos[row]
      sample = Sample(
        info.position,
        info.image_id,
        info.object_id,
        info.kind,
        info.expression,
        int(np.count_nonzero(info.mask)),
        info.mask.size,
      )
      # Only expressions of shapes have a kind, and only they can be parsed by the oracles.
      guessed = chances(info.expression, info.image_categories, info.object_index) if guess and info.kind else None
      yield Score(sample, overlaps[row].tolist(), guessed)
      if gallery:
        gallery.offer(batch['image'][row], info, predictions[row], batch['mask'][row], float(ious[row]))
    advance(len(valid))


def _pipelined(forward: Forward, batches: _Batches) -> Iterator[tuple[Batch, list[EvaluationSample], np.ndarray]]:
  """Yields batches with their logits; the device computes a batch while the caller scores the previous one."""
  pending = None
  for batch, infos in batches:
    started = batch, infos, forward(batch)
    if pending:
      yield *pending[:2], np.asarray(pending[2])
    pending = started
  if pending:
    yield *pending[:2], np.asarray(pending[2])


def _overlaps(
  logits: np.ndarray,
  predictions: np.ndarray,
  targets: np.ndarray,
  infos: list[EvaluationSample],
  threshold: float,
  protocols: Sequence[str],
) -> np.ndarray:
  """Intersection and union in pixels, int64 [B, protocols, 2], from logits and bool or 0/1 masks [B, S, S]."""
  size = logits.shape[-1]
  on_square = _counts(predictions, targets.astype(bool))
  overlaps = np.repeat(on_square[:, None], len(protocols), axis=1)
  for row, info in enumerate(infos):
    if not fills_square(info.letterbox, info.original_size, size):
      masks = [PROTOCOLS[name](logits[row], info.letterbox, info.original_size, threshold) for name in protocols]
      overlaps[row] = _counts(np.stack(masks), info.mask[None])
  return overlaps


def _counts(predictions: np.ndarray, truths: np.ndarray) -> np.ndarray:
  """Intersection and union, int64 [N, 2], of bool masks [N, h, w]."""
  intersection = _areas(predictions & truths)
  union = _areas(predictions | truths)
  return np.stack([intersection, union], -1)


def _areas(masks: np.ndarray) -> np.ndarray:
  # Ten times faster than count_nonzero with axes, which widens each pixel to 64 bits.
  return np.array([np.count_nonzero(mask) for mask in masks], np.int64)
