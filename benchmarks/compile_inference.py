"""Compiles inference for an H100 without a GPU: JAX_PLATFORMS=cpu python benchmarks/compile_inference.py

Needs jax[cuda12]. The programs are those that prediction and evaluation share (inference/programs.py), in bfloat16, which
dtype 'auto' means on GPUs. Prints one JSON line per model, program and number of rows: seconds of compilation, temporary
memory, the number of calls to cuDNN's fused attention, and whether the program contains an array of queries by keys.
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
from jax.experimental import topologies

from ditsam_jax.inference import programs
from ditsam_jax.models.config import PRESETS, DitSamConfig, sam
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import dtype_named, is_position
from ditsam_jax.ops.attention import cudnn

# XLA's GpuTargetConfigProto, with the card's published limits.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  memory_bandwidth: 3352320000000 device_memory_size: 84942979072
  cuda_compute_capability { major: 9 }
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
CAPABILITY = (9, 0)
# Triton GEMMs would be autotuned by timing them on the card.
OPTIONS = {'xla_gpu_enable_triton_gemm': False}


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--models', nargs='+', default=['ldit', 'sam'], choices=('ldit', 'edit', 'text', 'sam'))
  parser.add_argument('--size', default='vit_b', choices=PRESETS)
  parser.add_argument('--rows', nargs='+', type=int, default=[1, 8])
  options = parser.parse_args()
  device = h100()
  failed = False
  for name in options.models:
    config = model_config(name, options.size)
    for rows in options.rows:
      for program, lowered in lowered_programs(config, rows, device):
        row = {'model': name, 'size': options.size, 'program': program, 'rows': rows, **report(lowered, config)}
        print(json.dumps(row), flush=True)
        failed |= program == 'encode' and (row['fused'] < config.image_encoder.depth or row['square'])
  return int(failed)


def h100() -> jax.Device:
  """Returns an H100 for the compiler, and makes JAX's checks of the local GPU describe it."""
  jax.devices()  # registers the CUDA plugin in addition to the CPU
  topology = topologies.get_topology_desc(platform='cuda', topology_name='', target_config=H100, topology='1x1x1')
  assume_capability(CAPABILITY)
  return topology.devices[0]


def assume_capability(capability: tuple[int, int]) -> None:
  """Makes this library and JAX use the target's compute capability in place of the local GPU's.

  There is no public API for this: jax.nn.dot_product_attention queries the local GPU even when lowering for another.
  """
  from jax._src.cudnn import fused_attention_stablehlo as fused

  cudnn.compute_capability = lambda: capability
  fused.check_compute_capability = lambda required: capability >= tuple(map(int, required.split('.')))
  fused.is_cuda_compute_capability_equal = lambda other: capability == tuple(map(int, other.split('.')))


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
  yield 'encode', programs.encode.lower(*encoder, images, None if config.fusion == 'none' else features)
  embeddings = (array((grid, grid, config.mask_decoder.width)),) * rows
  points = (array((rows, 8, 2), jnp.float32), array((rows, 8), jnp.int32)) if text is None else None
  yield (
    'decode',
    programs.decode.lower(*decoder, embeddings, points, None, features, multimask=text is None, squares=False),
  )


def report(lowered, config: DitSamConfig) -> dict:
  """Compiles a program and returns the figures to print."""
  started = time.perf_counter()
  compiled = lowered.compile(compiler_options=OPTIONS)
  text = compiled.as_text()
  return {
    'seconds': round(time.perf_counter() - started, 1),
    'temporary_mib': round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1),
    'fused': len(re.findall(r'custom_call_target="__cudnn\$fmha', text)),
    'square': has_square(text, config),
  }


def has_square(text: str, config: DitSamConfig) -> bool:
  """Whether a program contains an array whose last two axes have the encoder's sequence length, with or without text."""
  image, slots = config.grid**2, config.max_text_tokens if config.text_encoder else 0
  lengths = {image, image + slots, image + slots + (image + slots) % 2}
  found = re.findall(r'\[(?:\d+,)*(\d+),(\d+)\]', text)
  return any(int(a) in lengths and int(b) in lengths for a, b in found)


if __name__ == '__main__':
  sys.exit(main())
