"""Batches for evaluation: every (object, expression) pair of a split once, in a fixed order."""

import collections
import concurrent.futures
import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ditsam_jax.data.batches import Batch, check_threads, stack
from ditsam_jax.data.referring import ImageRecord, ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import Letterbox, Triple, centre, letterbox, resize_mask
from ditsam_jax.tokenization import Tokenizer


@dataclasses.dataclass(frozen=True)
class EvaluationSample:
  """An (object, expression) pair for evaluation."""

  image_id: int
  object_id: int
  object_index: int  # among the objects of the image
  image_categories: tuple[str, ...]  # of all objects of the image
  expression: str
  kind: str
  mask: np.ndarray  # the ground truth, bool [h, w], at the image's own size
  letterbox: Letterbox  # position of the image in the square
  position: int = 0  # among all (object, expression) pairs of the split

  @property
  def original_size(self) -> tuple[int, int]:
    """Height and width of the image, in pixels."""
    return self.mask.shape


def evaluation_batches(
  source: ReferringSource,
  tokenizer: Tokenizer,
  *,
  image_size: int,
  pixel_mean: Triple,
  pixel_std: Triple,
  batch_size: int,
  limit: int | None = None,
  positions: Sequence[int] | None = None,
  threads: int = 2,
  shard: tuple[int, int] = (0, 1),
) -> Iterator[tuple[Batch, list[EvaluationSample]]]:
  """Yields all (object, expression) pairs once, in a fixed order, as batches with an EvaluationSample per row.

  Batches have the arrays of `train_batches`, without augmentation, and two more: 'valid' bool [B], False for rows that
  pad the last batch, and 'image_index' int32 [B], equal for rows that share an image, which is decoded and letterboxed
  once.

  Args:
    source: the split.
    tokenizer: the model's tokenizer.
    image_size: side of the model's square.
    pixel_mean, pixel_std: the model's normalisation, on a scale of 0 to 1.
    batch_size: rows per batch.
    limit: evaluate this many pairs, evenly spread, instead of all.
    positions: evaluate the pairs at these positions instead of all.
    threads: threads that prepare images.
    shard: (index of this host, number of hosts); all hosts get the same number of batches.

  Raises:
    UserError: there is nothing to evaluate.
  """
  check_threads(threads, 1)
  visits = _group_by_image(source, _evaluation_rows(source, limit, positions, batch_size, shard))
  prepare = _EvaluationTransform(source, tokenizer, image_size, pixel_mean, pixel_std)
  rows = []
  for prepared in _map_ahead(prepare, visits, threads):
    rows += prepared
    while len(rows) >= batch_size:
      batch, rows = rows[:batch_size], rows[batch_size:]
      yield stack([row for row, _ in batch]), [info for _, info in batch]


def pairs_of(
  source: ReferringSource, limit: int | None = None, positions: Sequence[int] | None = None
) -> list[tuple[int, int, int]]:
  """Lists the pairs of a split: position in the split, index of the object in the source, index of the expression.

  Args:
    source: the split.
    limit: this many pairs, evenly spread, instead of all.
    positions: the pairs at these positions instead of all.

  Raises:
    UserError: there is none.
  """
  pairs = [(index, which) for index, number in enumerate(source.expression_counts) for which in range(number)]
  pairs = [(position, *pair) for position, pair in enumerate(pairs)]
  if positions is not None:
    pairs = [pairs[position] for position in positions]
  elif limit is not None and limit < len(pairs):
    pairs = [pairs[step * len(pairs) // limit] for step in range(limit)]
  if not pairs:
    raise UserError(
      f'split {source.split!r} of {source.directory} leaves no expression to evaluate '
      f'(limit {limit}); expected at least one'
    )
  return pairs


class _Row(NamedTuple):
  position: int  # among all (object, expression) pairs of the split
  index: int  # of the object in the source
  which: int  # index of the expression
  counts: bool  # whether it is evaluated; False for padding


def _evaluation_rows(
  source: ReferringSource,
  limit: int | None,
  positions: Sequence[int] | None,
  batch_size: int,
  shard: tuple[int, int],
) -> list[_Row]:
  """Returns this host's rows in order, padded to whole batches; their number is the same on all hosts."""
  pairs = pairs_of(source, limit, positions)
  host, hosts = shard
  per_host = -(-len(pairs) // (hosts * batch_size)) * batch_size
  places = range(host * per_host, (host + 1) * per_host)
  return [_Row(*pairs[min(place, len(pairs) - 1)], place < len(pairs)) for place in places]


def _group_by_image(source: ReferringSource, rows: list[_Row]) -> list[tuple[int, list[_Row]]]:
  """Groups consecutive rows that share an image, so it is decoded once."""
  return [(image, list(run)) for image, run in itertools.groupby(rows, lambda row: source.place(row.index)[0])]


@dataclasses.dataclass(frozen=True)
class _EvaluationTransform:
  source: ReferringSource
  tokenizer: Tokenizer
  image_size: int
  mean: Triple
  std: Triple

  def __call__(self, visit: tuple[int, list[_Row]]) -> list[tuple[Batch, EvaluationSample]]:
    image, rows = visit
    record = self.source.image(image)
    square, box = letterbox(record.image(), self.image_size, self.mean, self.std)
    prepared = []
    for index, run in itertools.groupby(rows, lambda row: row.index):
      prepared += self._object(record, square, box, self.source.place(index)[1], list(run))
    for row, _ in prepared:
      row['image_index'] = np.int32(image)
    return prepared

  def _object(
    self,
    record: ImageRecord,
    square: np.ndarray,
    box: Letterbox,
    index: int,
    rows: list[_Row],
  ) -> list[tuple[Batch, EvaluationSample]]:
    mask, expressions, kinds = record.mask(index), record.expressions(index), record.kinds(index)
    target, _ = centre(resize_mask(mask, self.image_size), self.image_size)
    ids, token_mask = self.tokenizer([expressions[row.which] for row in rows])
    prepared = []
    for row, row_ids, row_mask in zip(rows, ids, token_mask):
      arrays = {
        'image': square,
        'mask': target,
        'token_ids': row_ids,
        'token_mask': row_mask,
        'valid': np.bool_(row.counts),
      }
      info = EvaluationSample(
        record.image_id,
        record.object_ids[index],
        index,
        record.categories,
        expressions[row.which],
        kinds[row.which],
        mask,
        box,
        row.position,
      )
      prepared.append((arrays, info))
    return prepared


def _map_ahead(function, items: list, threads: int) -> Iterator:
  """Like `map`, with threads that work at most a few items ahead of the reader."""
  with concurrent.futures.ThreadPoolExecutor(threads) as pool:
    waiting = collections.deque()
    for item in items:
      waiting.append(pool.submit(function, item))
      if len(waiting) > 4 * threads:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
