"""mIoU of ONNX and JAX: python benchmarks/exported.py --checkpoint=shapes --exports onnx/f32 onnx/int8 --limit=2000

Scores sentences of the shapes data's test split, evenly spread, with the release's protocol. Prints a JSON line for JAX
and one for every export, with the share of pixels whose decision differs from JAX's, the size of its programs, and the
seconds per sample in batches of --batch-size.
"""

import argparse
import json
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT)

import numpy as np

from ditsam_jax.data import datasets
from ditsam_jax.evaluation.evaluator import evaluate_split
from ditsam_jax.evaluation.forward import Forward, forward_of
from ditsam_jax.exporting.onnx_runtime import Session
from ditsam_jax.geometry.letterbox import logit
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import data_config, vocabulary_file
from ditsam_jax.tokenization import Tokenizer


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--checkpoint', default='shapes')
  parser.add_argument('--exports', nargs='+', default=[], help='folders of `ditsam_jax.export --format=onnx`')
  parser.add_argument('--limit', type=int, default=2000, help='sentences')
  parser.add_argument('--batch-size', type=int, default=32)
  options = parser.parse_args()
  model = saved_model.load(options.checkpoint)
  config = model.config
  source = datasets.open_split('shapes', ROOT / 'data', 'test', scenes=data_config(options.checkpoint).get('scenes'))
  tokenizer = Tokenizer(vocabulary_file(options.checkpoint), config.max_text_tokens)
  decided: dict[str, list[np.ndarray]] = {}

  def measure(name: str, forward: Forward, **about) -> None:
    seen = decided.setdefault(name, [])

    def recording(batch):
      logits = np.asarray(forward(batch))
      seen.append(np.packbits(logits > logit(config.mask_threshold)))
      return logits

    evaluate_split(forward, source, tokenizer, config, batch_size=options.batch_size, limit=8)  # compiles
    started = time.perf_counter()
    results = evaluate_split(
      recording, source, tokenizer, config, batch_size=options.batch_size, limit=options.limit, protocols=['release']
    )
    seconds = (time.perf_counter() - started) / len(results.samples)
    pairs = list(zip(seen, decided['jax']))
    flipped = sum(int(np.bitwise_count(a ^ b).sum()) for a, b in pairs) / sum(8 * a.size for a, _ in pairs)
    line = {'model': name, 'samples': len(results.samples), 'miou': round(results.miou, 2), 'flipped': f'{flipped:.1e}'}
    print(json.dumps(line | about | {'seconds_a_sample': round(seconds, 4)}), flush=True)

  measure('jax', forward_of(model))
  for folder in options.exports:
    files = list(Path(folder).glob('*.onnx*'))
    size = round(sum(file.stat().st_size for file in files) / 1e6, 2)
    measure(folder, onnx_forward(Session(Path(folder), config), config), megabytes=size)


def onnx_forward(session: Session, config: DitSamConfig) -> Forward:
  """A function from a batch to logits [B, S, S], like `forward_of`."""

  def forward(batch):
    count, side = len(batch['image']), 4 * config.grid
    ids, mask = (batch[name].astype(np.int64) for name in ('token_ids', 'token_mask'))
    (text,) = session.run('text_encoder', token_ids=ids, token_mask=mask)
    enters = {'text_features': text} if config.encodes_text_with_image else {}
    (embedding,) = session.run('image_encoder', images=batch['image'].transpose(0, 3, 1, 2), **enters)
    masks, _, _ = session.run(
      'decoder',
      image_embeddings=embedding,
      point_coords=np.zeros((count, 0, 2), np.float32),
      point_labels=np.zeros((count, 0), np.float32),
      mask_input=np.zeros((count, 1, side, side), np.float32),
      has_mask_input=np.zeros(1, np.float32),
      orig_im_size=np.full(2, config.image_size, np.float32),
      text_features=text,
    )
    return masks[:, 0]

  return forward


if __name__ == '__main__':
  main()
