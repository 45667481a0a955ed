"""Batches for training, and for pre-training with visual prompts."""

import dataclasses
import sys
from collections.abc import Iterator

import grain
import numpy as np
from absl import flags

from ditsam_jax.data import augmentation as augment
from ditsam_jax.data import prompts
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.batches import Batch, Sample, check_threads, stack
from ditsam_jax.data.prompts import PromptConfig
from ditsam_jax.data.referring import ImageRecord, ReferringSample, ReferringSource
from ditsam_jax.data.workers import check_processes
from ditsam_jax.geometry.letterbox import Triple, Unplaced, centre, top_left
from ditsam_jax.tokenization import Tokenizer


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
  `batch_size` counts all hosts; `rows`, int [n], are the rows that this host loads, by default all. The n-th batch
  depends only on seed and batch size, not on hosts, `threads` or `processes`.

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
    masks = np.ascontiguousarray(np.moveaxis(masks, -1, 0))
    targets = [self._target(masks, index, rng) for index in self._objects(record.num_objects, rng)]
    return {'image': Unplaced(image, self.image_size, self.mean, self.std, centred=False), **stack(targets)}

  def _objects(self, number: int, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(number, self.num_targets, replace=number < self.num_targets)

  def _target(self, masks: np.ndarray, index: int, rng: np.random.Generator) -> Batch:
    kind = prompts.draw_kind(self.prompt, rng)
    points, labels, mask = prompts.draw_target(kind, masks, index, self.prompt, rng)
    return {'points': points, 'labels': labels, 'masks': top_left(mask, self.image_size)}


class BatchStream(Iterator[Batch]):
  """Endless batches; each host loads some of their rows.

  The n-th batch does not depend on the number of hosts, threads or processes. The number of batches read is therefore
  all the state needed to resume, even with a different number of hosts, threads or processes.
  """

  def __init__(self, samples: grain.MapDataset, batch_size: int, rows: np.ndarray, threads: int, processes: int):
    self._samples, self._batch_size, self._rows = samples, batch_size, rows
    check_threads(threads, 0)
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
    dataset = mine.batch(len(self._rows), drop_remainder=True, batch_fn=stack)
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
