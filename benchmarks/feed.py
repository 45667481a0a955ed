"""Compares the throughput of the data pipeline with a plain PyTorch loader: python benchmarks/feed.py

Loads photograph-like images (640 x 480, JPEGs of 145 kB, RefCOCO's formats, prepared in a temporary folder) at 512 with
the release's augmentation. Prints JSON lines: whether both loaders yield equal samples for equal random choices; CPU
milliseconds of each step of the pipeline; what decoding at half size would save and change; and throughput of one core
and with workers on all cores. Throughput of one core is in samples per CPU second, with OpenCV and PyTorch on one
thread, which other load changes little. Loaders take turns; figures are medians with minimum and maximum. Rows of
PyTorch are omitted if it is not installed.
"""

import argparse
import contextlib
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
os.environ['TOKENIZERS_PARALLELISM'] = 'false'

import cv2
import numpy as np

from benchmarks import photographs
from ditsam_jax.data import augmentation as augment
from ditsam_jax.data import pipeline
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.geometry.letterbox import Unplaced, centre, resize
from ditsam_jax.tokenization import Tokenizer, read_vocabulary

try:
  import torch

  from benchmarks import torch_feed
except ImportError:
  torch = None

SIZE, TOKENS, BATCH = 512, 20, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT = dict(image_size=SIZE, pixel_mean=MEAN, pixel_std=STD, batch_size=BATCH)
RECIPE = AugmentationConfig()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--images', type=int, default=200)
  parser.add_argument('--samples', type=int, default=240, help='samples per turn')
  parser.add_argument('--turns', type=int, default=5)
  parser.add_argument(
    '--workers', type=int, default=os.cpu_count(), help='threads or processes (default: one per core)'
  )
  options = parser.parse_args()
  cv2.setNumThreads(1)
  with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    report(row='data', cores=os.cpu_count(), **photographs.write(root, options.images))
    source, tokenizer = photographs.open_prepared(root, 'train', TOKENS)
    plain = plain_datasets(root, tokenizer)
    if plain:
      compare(source, tokenizer, plain)
    else:
      report(row='omitted', what='the rows of the PyTorch loader', why='PyTorch is not installed')
    steps(source, tokenizer, options.samples)
    half_size(sorted((root / 'train2014').iterdir()))
    rates(source, tokenizer, plain, options)


def report(**values) -> None:
  print(json.dumps(values), flush=True)


def plain_datasets(root: Path, tokenizer: Tokenizer) -> dict:
  """Returns PyTorch data sets for training and evaluation; empty without PyTorch."""
  if torch is None:
    return {}
  torch.set_num_threads(1)
  vocabulary = read_vocabulary(tokenizer.vocabulary_file)
  return {
    name: torch_feed.PlainDataset(root, 'train', vocabulary, SIZE, TOKENS, MEAN, STD, train=name == 'train')
    for name in ('train', 'evaluation')
  }


def compare(source: ReferringSource, tokenizer: Tokenizer, plain: dict, count: int = 64) -> None:
  """Compares the loaders' samples for equal random choices: all equal up to rounding of normalised pixels."""
  transform = pipeline.TrainTransform(tokenizer, SIZE, MEAN, STD, RECIPE)
  ours = []
  for index in range(count):
    row = transform.random_map(source[index], np.random.default_rng(index))
    square = np.zeros((SIZE, SIZE, 3), np.float32)
    row['image'].place(square)
    ours.append((square, row['mask'], row['token_ids'], row['token_mask']))
  theirs = [plain['train'].drawn(index, np.random.default_rng(index)) for index in range(count)]
  report(row='equal', what='train', **differences(ours, theirs))
  ours = []
  for batch, _ in evaluation_batches(source, tokenizer, **INPUT, positions=range(count)):
    ours += zip(*(batch[name] for name in ('image', 'mask', 'token_ids', 'token_mask')))
  report(row='equal', what='evaluation', **differences(ours, [plain['evaluation'][index] for index in range(count)]))


def differences(ours: list, theirs: list) -> dict:
  """Compares samples (image, mask, token ids, token mask), ours HWC and theirs CHW."""
  pixels = [np.abs(one[0] - other[0].permute(1, 2, 0).numpy()).max() for one, other in zip(ours, theirs)]
  rest = [np.array_equal(a, b.numpy()) for one, other in zip(ours, theirs) for a, b in zip(one[1:], other[1:])]
  return {
    'samples': len(pixels),
    'masks_and_tokens_equal': all(rest),
    'largest_pixel_difference': float(max(pixels)),
    'equal': all(rest) and bool(max(pixels) < 1e-6),
  }


def steps(source: ReferringSource, tokenizer: Tokenizer, samples: int) -> None:
  """Reports CPU milliseconds of each step of a training sample, as mean and share."""
  spent: dict[str, list[float]] = {}

  def timed(step: str, function: Callable, *arguments):
    started = time.thread_time()
    result = function(*arguments)
    spent.setdefault(step, []).append(1e3 * (time.thread_time() - started))
    return result

  rng, images, masks, tokens = np.random.default_rng(0), [], [], []
  for index in itertools.islice(itertools.cycle(rng.permutation(len(source))), samples):
    place, which = source.place(index)
    record = timed('read and parse the record', source.image, place)
    image = timed('decode the JPEG', record.image)
    mask = timed('decode the mask', record.mask, which)
    text = rng.choice(record.expressions(which))
    image, mask = timed('resize', augment.random_scale, image, mask, SIZE, RECIPE, rng)
    image = timed('brightness, contrast, saturation', augment.color_jitter, image, RECIPE, rng)
    image, mask, text = timed('flip', augment.flip, image, mask, text, RECIPE, rng)
    tokens.append(timed('tokenise (cached after the first time)', tokenizer, [text])[0][0])
    images.append(Unplaced(image, SIZE, MEAN, STD))
    masks.append(timed('centre the mask', centre, mask, SIZE)[0])
    if len(images) == BATCH:
      timed('normalise and centre, into the batch', into_batch, images)
      timed('stack masks and tokens', lambda: (np.stack(masks), np.stack(tokens)))
      images, masks, tokens = [], [], []
  means = {step: sum(times) / samples for step, times in spent.items()}
  for step, mean in means.items():
    report(row='step', step=step, cpu_ms=round(mean, 3), percent=round(100 * mean / sum(means.values()), 1))
  report(row='step', step='all of them', cpu_ms=round(sum(means.values()), 3), bound_by=max(means, key=means.get))


def half_size(files: list[Path]) -> None:
  """Decodes JPEGs at half size, and whole to be resized as in training; half fits only the smallest of the scales."""
  smallest = SIZE - RECIPE.scale_stride * (RECIPE.scale_steps - 1)
  assert 2 * smallest == photographs.WIDTH
  spent: dict[str, list[float]] = {'whole': [], 'half': []}
  differences = []
  for file in files:
    encoded = np.frombuffer(file.read_bytes(), np.uint8)
    decoded = {}
    for size, flag in (('whole', cv2.IMREAD_COLOR_RGB), ('half', cv2.IMREAD_REDUCED_COLOR_2)):
      started = time.thread_time()
      decoded[size] = cv2.imdecode(encoded, flag)
      spent[size].append(1e3 * (time.thread_time() - started))
    half = decoded['half'][..., ::-1].astype(int)
    differences.append(np.abs(resize(decoded['whole'], smallest) - half))
  for size, times in spent.items():
    report(row='decoding', size=size, cpu_ms=round(statistics.median(times), 3))
  report(
    row='decoding at half size',
    levels_off_mean=round(float(np.mean(differences)), 2),
    levels_off_most=int(np.max(differences)),
  )


def into_batch(images: list[Unplaced]) -> np.ndarray:
  squares = np.zeros((len(images), SIZE, SIZE, 3), np.float32)
  for image, square in zip(images, squares):
    image.place(square)
  return squares


def rates(source: ReferringSource, tokenizer: Tokenizer, plain: dict, options: argparse.Namespace) -> None:
  """Reports the throughput of every loader, for training and evaluation, on one core and on all."""

  def threads(what: str, workers: int) -> Iterable:
    if what == 'evaluation':
      return evaluation_batches(source, tokenizer, **INPUT, threads=max(1, workers))
    return pipeline.train_batches(source, tokenizer, **INPUT, augmentation=RECIPE, seed=0, threads=workers)

  def processes(what: str, workers: int) -> Iterable:
    return pipeline.train_batches(source, tokenizer, **INPUT, augmentation=RECIPE, seed=0, processes=workers)

  def pytorch(what: str, workers: int) -> Iterable:
    return torch_feed.batches(plain[what], BATCH, workers)

  theirs = {'PyTorch': pytorch} if plain else {}
  for what in ('train', 'evaluation'):
    compare_rates(what, 0, {'ditsam_jax': threads, **theirs}, options)
  ours = {'ditsam_jax, threads': threads, 'ditsam_jax, processes': processes}
  compare_rates('train', options.workers, ours | theirs, options)
  compare_rates('evaluation', options.workers, {'ditsam_jax, threads': threads, **theirs}, options)


def compare_rates(what: str, workers: int, loaders: dict[str, Callable], options: argparse.Namespace) -> None:
  """Times all loaders in turns on training or evaluation batches, and reports them."""
  turns: dict[str, list[float]] = {name: [] for name in loaders}
  for _ in range(options.turns):
    for name, batches in loaders.items():
      by_clock, by_cpu = rate(iter(batches(what, workers)), options.samples // BATCH)
      turns[name].append(by_clock if workers else by_cpu)
  medians = {name: statistics.median(values) for name, values in turns.items()}
  for name, values in turns.items():
    report(
      row=what,
      loader=name,
      workers=workers,
      unit='samples/s' if workers else 'samples/CPU s',
      median=round(medians[name], 1),
      lowest=round(min(values), 1),
      highest=round(max(values), 1),
      times_PyTorch=round(medians[name] / medians['PyTorch'], 2) if 'PyTorch' in medians else None,
    )


def rate(batches: Iterator, count: int) -> tuple[float, float]:
  """Returns samples per second of wall time and of this process's CPU time, over `count` batches after two warm-ups."""
  with contextlib.suppress(StopIteration):
    for _ in range(2):
      next(batches)
  started, cpu = time.perf_counter(), time.process_time()
  taken = sum(1 for _ in itertools.islice(batches, count))
  return BATCH * taken / (time.perf_counter() - started), BATCH * taken / (time.process_time() - cpu)


if __name__ == '__main__':
  main()
