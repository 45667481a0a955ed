"""Compares prediction with Meta's segment_anything and our model in PyTorch: python benchmarks/inference.py --turns=3

Both sides use the same random weights, compute in f32 and take turns in one process. Prints one JSON line per case:
seconds of both (median; minimum and maximum as `spread`), the speed-up of ditsam_jax, and the largest difference of the
results relative to the largest value.

  sam_encoder   set_image of plain SAM at 1024, until the embedding is ready
  sam_points    64 clicks on that image, decoded together, three masks each, at the image's original size
  ldit_1        L-DIT at 512, one sentence; PyTorch is given the preprocessed image
  ldit_8        eight sentences about one image
  predict       the command `ditsam_jax.predict` on JPEG files, against the engine alone on arrays in memory
  cold_start    `python -m ditsam_jax.predict` with a shipped model on one image, with programs already compiled

A quick trial: --size=tiny --images=4 --points=8 --turns=1
"""

import argparse
import contextlib
import dataclasses
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import jax
import numpy as np
import torch
from PIL import Image

import ditsam_jax
from ditsam_jax import predict
from ditsam_jax.convert import names
from ditsam_jax.convert.torch_peer import Peer, segment_anything_modeling
from ditsam_jax.data import datasets
from ditsam_jax.inference.engine import Row
from ditsam_jax.inference.framing import frame, resized_as_meta
from ditsam_jax.models.config import PRESETS, DitSamConfig, sam
from ditsam_jax.models.ditsam import DitSam, abstract_model
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.building import build_model

CASES = ('sam_encoder', 'sam_points', 'ldit_1', 'ldit_8', 'predict', 'cold_start')
TOLERANCE = 1e-3  # if results differ more, timing them is pointless
SENTENCE = 'the {} {} circle left of the large blue square'
SIZES, COLOURS = ('small', 'large', 'left', 'right'), ('red', 'green', 'blue', 'yellow', 'purple', 'orange')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__.split('\n')[0], epilog=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--cases', nargs='+', choices=CASES, default=CASES)
  parser.add_argument('--size', choices=PRESETS, default='vit_b')
  parser.add_argument('--turns', type=int, default=3, help='timed turns, after a warm-up')
  parser.add_argument('--points', type=int, default=64)
  parser.add_argument('--images', type=int, default=200, help='number of images of the case predict')
  options = parser.parse_args()
  torch.manual_seed(0)
  torch.set_grad_enabled(False)
  wanted = set(options.cases)
  if wanted & {'sam_encoder', 'sam_points'}:
    show(sam_rows(sam(PRESETS[options.size]()), options, wanted))
  if wanted & {'ldit_1', 'ldit_8', 'predict'}:
    show(ldit_rows(options, wanted))
  if 'cold_start' in wanted:
    show([cold_start(options.turns)])


def show(rows) -> None:
  for row in rows:
    print(json.dumps(row), flush=True)


def sam_rows(config: DitSamConfig, options: argparse.Namespace, wanted: set[str]):
  """Yields rows that compare plain SAM with Meta's predictor."""
  peer = Peer(config).eval()
  meta = MetaPredictor(peer, config)
  ours = ditsam_jax.SamPredictor(converted(peer, config))
  image = photograph(config.image_size * 3 // 4, config.image_size)

  def embedded(predictor):
    predictor.set_image(image)
    return np.asarray(predictor.get_image_embedding())

  if 'sam_encoder' in wanted:
    yield compared('sam_encoder', options, lambda _: embedded(ours), lambda _: embedded(meta))
  if 'sam_points' in wanted:
    embedded(ours), embedded(meta)
    points = np.random.default_rng(0).uniform(0, image.shape[0], (options.points, 1, 2))
    labels = np.ones((options.points, 1), int)
    row = compared(
      'sam_points',
      options,
      lambda _: ours.predict_batch(points, labels, multimask_output=True)[1:],
      lambda _: meta.predict_batch(points, labels)[1:],
    )
    yield row | {'points': options.points}


class MetaPredictor:
  """segment_anything's SamPredictor without its dependency on torchvision, which only resizes Pillow images here."""

  def __init__(self, peer: Peer, config: DitSamConfig):
    mean, std = ([255 * value for value in values] for values in (config.pixel_mean, config.pixel_std))
    modeling = segment_anything_modeling()
    self.sam = modeling.Sam(peer.visual_encoder, peer.prompt_encoder, peer.mask_decoder, mean, std).eval()
    self._side = config.image_size

  def set_image(self, image: np.ndarray) -> None:
    self._size = image.shape[:2]
    self._input_size = resized_as_meta(*self._size, self._side)
    resized = np.array(Image.fromarray(image).resize(self._input_size[::-1], Image.Resampling.BILINEAR))
    pixels = torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None]
    self._features = self.sam.image_encoder(self.sam.preprocess(pixels))

  def get_image_embedding(self) -> torch.Tensor:
    return self._features

  def predict_batch(self, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, ...]:
    """Does what `predict_torch` does for all prompts at once, three masks each."""
    scale = np.array(self._input_size[::-1]) / self._size[::-1]
    coordinates = torch.as_tensor(points * scale, dtype=torch.float), torch.as_tensor(labels, dtype=torch.int)
    sparse, dense = self.sam.prompt_encoder(points=coordinates, boxes=None, masks=None)
    positions = self.sam.prompt_encoder.get_dense_pe()
    low_res, iou = self.sam.mask_decoder(self._features, positions, sparse, dense, True)
    masks = self.sam.postprocess_masks(low_res, self._input_size, self._size) > self.sam.mask_threshold
    return masks.numpy(), iou.numpy(), low_res.numpy()


def ldit_rows(options: argparse.Namespace, wanted: set[str]):
  """Yields rows that compare L-DIT with PyTorch, and the command with the engine."""
  config = PRESETS[options.size](fusion_dropout=0.0)
  # The vocabulary of shapes: the size of the embedding table does not affect the time.
  config = dataclasses.replace(
    config, text_encoder=dataclasses.replace(config.text_encoder, dropout=0.0, vocab_size=128)
  )
  peer = Peer(config).eval()
  model = converted(peer, config)
  tokenizer = ditsam_jax.Tokenizer(datasets.vocabulary('shapes'), config.max_text_tokens)
  segmenter = ditsam_jax.Segmenter.from_model(model, tokenizer)
  image = photograph(config.image_size, config.image_size)  # at the model's size, so that logits are comparable
  square = torch.from_numpy(frame(image, config).square.pixels).permute(2, 0, 1)[None].contiguous()
  sentences = [SENTENCE.format(*words) for words in itertools.product(SIZES, COLOURS)]
  for count in (1, 8):
    if f'ldit_{count}' not in wanted:
      continue
    images = square.repeat(count, 1, 1, 1)

    def texts(turn: int) -> list[str]:  # new ones in every turn, because encoded sentences are cached
      return [sentences[(count * turn + i) % len(sentences)] for i in range(count)]

    def in_pytorch(turn: int) -> list[np.ndarray]:
      ids, mask = (torch.from_numpy(array).long() for array in tokenizer(texts(turn)))
      return [peer(images, ids, mask)['logits'].numpy()]

    def here(turn: int) -> list[np.ndarray]:
      return [np.stack([found.logits[0] for found in segmenter(image, texts(turn))])]

    yield compared(f'ldit_{count}', options, here, in_pytorch)
  if 'predict' in wanted:
    yield predicted(options, config, model, segmenter, sentences[0])


def predicted(options, config: DitSamConfig, model: DitSam, segmenter, sentence: str) -> dict:
  """Times the command on files, and the engine on the same images in memory."""
  with tempfile.TemporaryDirectory() as folder:
    folder = Path(folder)
    saved_model.save(folder / 'model', model, vocabulary=datasets.vocabulary('shapes'))
    (folder / 'images').mkdir()
    files = [folder / 'images' / f'{i:04}.jpg' for i in range(options.images)]
    for i, file in enumerate(files):
      Image.fromarray(photograph(480, 640, seed=i)).save(file, quality=90)
    squares = [frame(np.asarray(Image.open(file)), config).square.pixels for file in files]
    sentence_row = segmenter.row(frame(photograph(480, 640), config), segmenter.prompt(sentence)).sentence

    def engine():
      from ditsam_jax.inference.engine import Square

      rows = [Row(Square(square), sentence_row) for square in squares]
      for start in range(0, len(rows), 8):
        pieces = segmenter.engine.run(rows[start : start + 8], 8)
      jax.block_until_ready([piece.logits for piece in pieces])

    turn = iter(range(10**6))

    def command(some=files):
      arguments = [f'--checkpoint={folder / "model"}', f'--output={folder / f"out{next(turn)}"}', f'--text={sentence}']
      with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        status = predict.main([*arguments, '--batch-size=8', '--image', *map(str, some)])
      assert status == 0, status

    found = {'engine': [], 'command': []}
    engine(), command(files[:8])
    for _ in range(options.turns):
      found['engine'].append(seconds(engine))
      found['command'].append(seconds(command))
    medians = {name: statistics.median(times) for name, times in found.items()}
    return {
      'case': 'predict',
      'images': len(files),
      **{f'seconds_{name}': round(median, 2) for name, median in medians.items()},
      'images_per_second': round(len(files) / medians['command'], 2),
      'over_engine_percent': round(100 * (medians['command'] / medians['engine'] - 1), 1),
      'spread': {name: [round(min(times), 2), round(max(times), 2)] for name, times in found.items()},
    }


def cold_start(turns: int) -> dict:
  """Times a process from its start until its files are written."""
  with tempfile.TemporaryDirectory() as folder:
    image = Path(folder) / 'scene.png'
    Image.fromarray(photograph(96, 128)).save(image)
    command = [
      sys.executable,
      '-m',
      'ditsam_jax.predict',
      '--checkpoint=shapes',
      '--text=the red circle',
      '--image',
      image,
    ]
    times = []
    for turn in range(turns + 1):
      output = f'--output={Path(folder) / str(turn)}'
      times.append(
        seconds(
          lambda: subprocess.run([*command, output], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=os.environ)
        )
      )
  return {
    'case': 'cold_start',
    'seconds': round(statistics.median(times[1:]), 2),
    'first': round(times[0], 2),
    'spread': [round(min(times[1:]), 2), round(max(times[1:]), 2)],
  }


def compared(case: str, options: argparse.Namespace, ours: Callable, theirs: Callable) -> dict:
  """Times both sides in turns."""
  found = [[np.asarray(part, np.float32) for part in run(0)] for run in (ours, theirs)]
  difference = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*found))
  assert difference < TOLERANCE, f'{case}: the sides disagree: {difference}'
  times = [], []
  for turn in range(options.turns):
    for side, run in zip(times, (ours, theirs)):
      side.append(seconds(lambda: run(turn + 1)))
  medians = [statistics.median(side) for side in times]
  return {
    'case': case,
    'size': options.size,
    'seconds': round(medians[0], 3),
    'seconds_pytorch': round(medians[1], 3),
    'times_as_fast': round(medians[1] / medians[0], 2),
    'spread': [[round(min(side), 3), round(max(side), 3)] for side in times],
    'difference': float(f'{difference:.1e}'),
  }


def seconds(run: Callable) -> float:
  started = time.perf_counter()
  run()
  return time.perf_counter() - started


def converted(peer: Peer, config: DitSamConfig) -> DitSam:
  """Returns our model with the weights of a PyTorch peer."""
  tensors = peer.state_dict()
  shapes = weights_of(abstract_model(config))
  entries = {path: names.entry(path) for path in shapes}
  weights = {path: entry.load([tensors[name].numpy() for name in entry.names]) for path, entry in entries.items()}
  return build_model(config, weights, 'the benchmark')


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
  """Returns an image that compresses like a photograph, soft blobs and grain, uint8 [h, w, 3]."""
  rng = np.random.default_rng(seed)
  blobs = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
  return np.clip(np.asarray(blobs) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)


if __name__ == '__main__':
  main()
