"""Batches for training, for pre-training with visual prompts, and for evaluation."""

import collections
import concurrent.futures
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np
from absl import flags

from ditsam_jax.data import augmentation as augment
from ditsam_jax.data import prompts
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.prompts import PromptConfig
from ditsam_jax.data.referring import ImageRecord, ReferringSample, ReferringSource
from ditsam_jax.data.workers import check_processes
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import Letterbox, Triple, Unplaced, centre, letterbox, resize_mask, top_left
from ditsam_jax.limits import MAX_THREADS
from ditsam_jax.tokenization import Tokenizer

Batch = dict[str, np.ndarray]
Sample = dict[str, np.ndarray | Unplaced]  # a row of a future batch


def train_batches(
  source: ReferringSource,
  tokenizer: Tokenizer,
  *,
  image_size: int,
  pixel_mean: Triple,
  pixel_std: Triple,
  augmentation: AugmentationConfig,
  batch_size: int,
  seed: int,
  threads: int = 2,
  processes: int = 0,
  rows: np.ndarray | None = None,
) -> 'BatchStream':
  """Returns endless batches of objects, each with a randomly drawn expression, reshuffled every epoch.

  A batch is {'image' float32 [B, S, S, 3], 'mask' uint8 [B, S, S], 'token_ids', 'token_mask' int32 [B, T]}.
  `batch_size` counts all hosts; `rows`, int [n], are the rows that this host loads, by default all. The n-th batch depends
  only on seed and batch size, not on hosts, `threads` or `processes`.

  Raises:
    UserError: the augmentation does not fit the image size.
  """
  augmentation.check(image_size)
  transform = TrainTransform(tokenizer, image_size, pixel_mean, pixel_std, augmentation)
  objects = grain.MapDataset.source(source)
  return _endless_batches(objects, transform, batch_size, seed, threads, processes, rows)


def prompt_batches(
  source: ReferringSource,
  *,
  image_size: int,
  pixel_mean: Triple,
  pixel_std: Triple,
  augmentation: AugmentationConfig,
  batch_size: int,
  seed: int,
  objects_per_image: int = 4,
  prompt: PromptConfig = PromptConfig(),
  threads: int = 2,
  processes: int = 0,
  rows: np.ndarray | None = None,
) -> 'BatchStream':
  """Returns endless batches of images, each with K = `objects_per_image` targets and a visual prompt for each.

  A batch is {'image' float32 [B, S, S, 3] with the image at its top left, as SAM pads, 'points' float32 [B, K, 2, 2] as
  (x, y) in pixels of the square, 'labels' int32 [B, K, 2] (SAM's: -1 padding, 1 positive, 2 and 3 box corners; ABSENT
  for none), 'masks' uint8 0/1 [B, K, S, S]}. Order, seeds, state and errors as in `train_batches`.
  """
  augmentation.check(image_size)
  transform = _PromptTransform(image_size, pixel_mean, pixel_std, augmentation, objects_per_image, prompt)
  images = grain.MapDataset.range(source.num_images).map(source.image)
  return _endless_batches(images, transform, batch_size, seed, threads, processes, rows)


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
  _check_threads(threads, 1)
  visits = _group_by_image(source, _evaluation_rows(source, limit, positions, batch_size, shard))
  prepare = _EvaluationTransform(source, tokenizer, image_size, pixel_mean, pixel_std)
  rows = []
  for prepared in _map_ahead(prepare, visits, threads):
    rows += prepared
    while len(rows) >= batch_size:
      batch, rows = rows[:batch_size], rows[batch_size:]
      yield _stack([row for row, _ in batch]), [info for _, info in batch]


@dataclasses.dataclass(frozen=True)
class TrainTransform(grain.transforms.RandomMap):
  """Augments an object into a row of a training batch; its image is placed later."""

  tokenizer: Tokenizer
  image_size: int
  mean: Triple
  std: Triple
  config: AugmentationConfig

  def random_map(self, sample: ReferringSample, rng: np.random.Generator) -> Sample:
    text = sample.expressions[rng.integers(len(sample.expressions))]
    image, mask = augment.random_scale(sample.image, sample.mask, self.image_size, self.config, rng)
    image = augment.color_jitter(image, self.config, rng)
    image, mask, text = augment.flip(image, mask, text, self.config, rng)
    ids, token_mask = self.tokenizer([text])
    return {
      'image': Unplaced(image, self.image_size, self.mean, self.std),
      'mask': centre(mask, self.image_size)[0],
      'token_ids': ids[0],
      'token_mask': token_mask[0],
    }


@dataclasses.dataclass(frozen=True)
class _PromptTransform(grain.transforms.RandomMap):
  image_size: int
  mean: Triple
  std: Triple
  config: AugmentationConfig
  num_targets: int
  prompt: PromptConfig

  def random_map(self, record: ImageRecord, rng: np.random.Generator) -> Sample:
    masks = np.stack([record.mask(index) for index in range(record.num_objects)], -1)
    image, masks = augment.random_scale(record.image(), masks, self.image_size, self.config, rng)
    image = augment.color_jitter(image, self.config, rng)
    image, masks, _ = augment.flip(image, masks, '', self.config, rng)
    masks = masks.reshape(*image.shape[:2], -1)  # OpenCV drops the last axis of a single mask
    masks = top_left(masks, self.image_size)
    masks = np.ascontiguousarray(np.moveaxis(masks, -1, 0))
    targets = [self._target(masks, index, rng) for index in self._objects(record.num_objects, rng)]
    return {'image': Unplaced(image, self.image_size, self.mean, self.std, centred=False), **_stack(targets)}

  def _objects(self, number: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(number, self.num_targets, replace=number < self.num_targets)

  def _target(self, masks: np.ndarray, index: int, rng: np.random.Generator) -> Batch:
    kind = prompts.draw_kind(self.prompt, rng)
    points, labels, mask = prompts.draw_target(kind, masks, index, self.prompt, rng)
    return {'points': points, 'labels': labels, 'masks': mask}


class BatchStream(Iterator[Batch]):
  """Endless batches; each host loads some of their rows.

  The n-th batch does not depend on the number of hosts, threads or processes. The number of batches read is therefore
  all the state needed to resume, even with a different number of hosts, threads or processes.
  """

  def __init__(self, samples: grain.MapDataset, batch_size: int, rows: np.ndarray, threads: int, processes: int):
    self._samples, self._batch_size, self._rows = samples, batch_size, rows
    _check_threads(threads, 0)
    check_processes(processes)
    self._threads, self._processes = threads, processes
    self.set_state({'batches': 0})

  def __next__(self) -> Batch:
    batch = next(self._iterator)
    self._done += 1
    return batch

  def get_state(self) -> dict[str, int]:
    """Returns the position, for `set_state` of any stream with the same seed and batch size."""
    return {'batches': self._done}

  def set_state(self, state: dict[str, int]) -> None:
    """Moves to a position."""
    self._done = int(state['batches'])
    self._iterator = iter(self._batches_from(self._done))

  def _batches_from(self, first: int) -> grain.IterDataset:
    mine = _HostRows(self._samples, self._batch_size, self._rows, first)
    # Threads and processes work on whole batches, so their number does not affect the content of a batch.
    # (An endless data set has no remainder, but without drop_remainder, Grain's len() would overflow.)
    dataset = mine.batch(len(self._rows), drop_remainder=True, batch_fn=_stack)
    buffered = max(2, self._threads) if self._threads else 0  # batches; without threads, the caller does the work
    dataset = dataset.to_iter_dataset(grain.ReadOptions(num_threads=self._threads, prefetch_buffer_size=buffered))
    if self._processes:
      # Grain's worker processes read absl flags, which are only parsed by absl's `app.run`.
      if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=self._processes))
    return dataset


class _HostRows(grain.MapDataset):
  """The rows of one host in an endless sequence of batches, starting from batch `first`."""

  def __init__(self, samples: grain.MapDataset, batch_size: int, rows: np.ndarray, first: int):
    super().__init__(samples)
    self._batch_size, self._rows, self._first = batch_size, rows, first

  def __len__(self) -> int:
    return sys.maxsize

  def __getitem__(self, index: int) -> Sample | None:
    batch, place = divmod(index, len(self._rows))
    return self._parent[(self._first + batch) * self._batch_size + int(self._rows[place])]


def _endless_batches(
  elements: grain.MapDataset,
  transform: grain.transforms.RandomMap,
  batch_size: int,
  seed: int,
  threads: int,
  processes: int,
  rows: np.ndarray | None,
) -> BatchStream:
  """Returns batches in one global order, reshuffled every epoch; a sample's randomness depends only on its position."""
  samples = elements.seed(seed).shuffle().random_map(transform).repeat()
  return BatchStream(samples, batch_size, np.arange(batch_size) if rows is None else rows, threads, processes)


def _stack(rows: Sequence[Mapping[str, np.ndarray | Unplaced]]) -> Batch:
  return {name: _stacked([row[name] for row in rows]) for name in rows[0]}


def _stacked(values: list[np.ndarray | Unplaced]) -> np.ndarray:
  unplaced = [value for value in values if isinstance(value, Unplaced)]
  if not unplaced:
    return np.stack([value for value in values if not isinstance(value, Unplaced)])
  squares = np.zeros((len(unplaced), unplaced[0].size, unplaced[0].size, 3), np.float32)
  for value, square in zip(unplaced, squares):
    value.place(square)
  return squares


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


def _check_threads(threads: int, least: int) -> None:
  if not least <= threads <= MAX_THREADS:
    raise UserError(f'threads={threads}: expected {least} to {MAX_THREADS}; more than the number of cores is no faster')


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
