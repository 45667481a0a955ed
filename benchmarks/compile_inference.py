"""Compiles inference for a GPU without having one: JAX_PLATFORMS=cpu python benchmarks/compile_inference.py

Needs JAX's CUDA plugin (the extra 'cuda12' or 'cuda13'). The programs are those that prediction and evaluation share
(inference/programs.py), in bfloat16, which dtype 'auto' means on GPUs. Prints one JSON line per model, program and
number of rows: seconds of compilation, temporary memory, the number of calls to cuDNN's fused attention, and whether
the program contains an array of queries by keys.
Exits with status 1 if an encoder has fewer than one call per block, or contains such an array.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.analysis.targets import Target, devices_of, lowering, parse_topology
from ditsam_jax.inference import programs
from ditsam_jax.models.config import PRESETS, DitSamConfig, sam
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import dtype_named, is_position


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--models', nargs='+', default=['ldit', 'sam'], choices=('ldit', 'edit', 'text', 'sam'))
  parser.add_argument('--size', default='vit_b', choices=PRESETS)
  parser.add_argument('--rows', nargs='+', type=int, default=[1, 8])
  parser.add_argument('--topology', default='h100:1', help='one GPU: h100:1, a100-40:1, ...')
  options = parser.parse_args()
  target = parse_topology(options.topology)
  with lowering(target):
    return int(compile_all(options, target))


def compile_all(options: argparse.Namespace, target: Target) -> bool:
  """Compiles and prints everything; returns whether an encoder lacks fused attention."""
  device, failed = devices_of(target)[0], False
  for name in options.models:
    config = model_config(name, options.size)
    for rows in options.rows:
      for program, lowered in lowered_programs(config, rows, device):
        row = {'model': name, 'size': options.size, 'program': program, 'rows': rows, **report(lowered, config, target)}
        print(json.dumps(row), flush=True)
        failed |= program == 'encode' and (row['fused'] < config.image_encoder.depth or row['square'])
  return failed


def model_config(name: str, size: str) -> DitSamConfig:
  """L-DIT and its variants at 512, or plain SAM at 1024."""
  if name == 'sam':
    return sam(PRESETS[size]())
  fusions = {'ldit': PRESETS[size]().fusion, 'edit': 'e2e', 'text': 'none'}
  return PRESETS[size](fusion=fusions[name])


def lowered_programs(config: DitSamConfig, rows: int, device: jax.Device):
  """Yields (name, lowered program) of reading, encoding and decoding `rows` rows."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  dtype = dtype_named('auto', 'gpu')

  def array(shape, dtype=dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  parts = []

  def weights():
    made = programs.parts_of(DitSam(config, rngs=nnx.Rngs(0)))
    parts.append([part and part[0] for part in made])
    return [part and part[1] for part in made]

  shapes = jax.eval_shape(weights)
  shapes = [
    part and {n: array(x.shape, jnp.float32 if is_position(n) else dtype) for n, x in part.items()} for part in shapes
  ]
  reader, encoder, decoder = zip(parts[-1], shapes)
  text, features = config.text_encoder, None
  if text is not None:
    tokens = [array((rows, config.max_text_tokens), jnp.int32)] * 2
    yield 'read', programs.read.lower(*reader, *tokens)
    features = (array((config.max_text_tokens, text.width)),) * rows
  side, grid = config.image_size, config.grid
  images = array((rows, side, side, 3), jnp.float32)
  yield 'encode', programs.encode.lower(*encoder, images, features if config.encodes_text_with_image else None)
  embeddings = (array((grid, grid, config.mask_decoder.width)),) * rows
  points = (array((rows, 8, 2), jnp.float32), array((rows, 8), jnp.int32)) if text is None else None
  yield (
    'decode',
    programs.decode.lower(*decoder, embeddings, points, None, features, multimask=text is None, squares=False),
  )


def report(lowered, config: DitSamConfig, target: Target) -> dict:
  """Compiles a program and returns the figures to print."""
  started = time.perf_counter()
  compiled = lowered.compile(compiler_options=target.options)
  text = compiled.as_text()
  return {
    'seconds': round(time.perf_counter() - started, 1),
    'temporary_mib': round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
    'fused': len(re.findall(r'custom_call_target="__cudnn\$fmha', text)),
    'square': has_square(text, config),
  }


def has_square(text: str, config: DitSamConfig) -> bool:
  """Whether a program has an array whose last two axes have the encoder's sequence length, with or without text."""
  image, slots = config.grid**2, config.max_text_tokens if config.text_encoder else 0
  lengths = {image, image + slots, image + slots + (image + slots) % 2}
  found = re.findall(r'\[(?:\d+,)*(\d+),(\d+)\]', text)
  return any(int(a) in lengths and int(b) in lengths for a, b in found)


if __name__ == '__main__':
  sys.exit(main())
