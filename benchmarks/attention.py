"""Times every implementation of attention that runs on this device: python benchmarks/attention.py

On CPUs, one image with ViT-B at 512 in f32; on GPUs and TPUs, all presets at 512 and 1024 in bf16. Prints one JSON line
per shape, pass and implementation: milliseconds (median and range over all rounds), the ratio to the first row (median
over rounds), temporary memory, and the largest error of output and gradients against the f32 reference, relative to
their largest values. Implementations take turns within a round, so that other load slows all of them alike.

Also measured: on CPUs, rejected variants of `xla`; on GPUs, cuDNN's attention without relative positions, as a lower
bound; and PyTorch's scaled_dot_product_attention with the bias as its mask, if PyTorch is installed.
"""

import argparse
import contextlib
import functools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

sys.path[0] = str(Path(__file__).resolve().parents[1])

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.attention_shapes import SHAPES
from ditsam_jax.ops.attention import IMPLEMENTATIONS, attention, xla
from ditsam_jax.ops.attention.channels import appended, extra_channels
from ditsam_jax.ops.attention.choice import why_not

MANY = 2**40
VARIANTS = {  # values of constants of `xla`
  'xla, half the queries': {'ON_CPU': 5 * 2**20},
  'xla, single heads': {'HEADS': 1, 'ON_CPU': 5 * 2**20},
  'xla, queries of all heads': {'HEADS': MANY},
  'xla, all logits kept': {'SMALL': MANY},
}


def main() -> None:
  on_cpu = jax.default_backend() == 'cpu'
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument(
    '--shapes',
    nargs='+',
    choices=SHAPES,
    default=['vit_b-512'] if on_cpu else [shape for shape in SHAPES if shape != 'tiny'],
  )
  parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32' if on_cpu else 'bfloat16')
  parser.add_argument('--batch', type=int, default=1 if on_cpu else None, help="overrides the shape's batch size")
  parser.add_argument('--rounds', type=int, default=9 if on_cpu else 30)
  options = parser.parse_args()
  print(
    json.dumps(
      {'device': jax.devices()[0].device_kind, 'jax': jax.__version__, 'dtype': options.dtype, 'rounds': options.rounds}
    )
  )
  for shape in options.shapes:
    for row in measure(shape, options.dtype, options.batch, options.rounds):
      print(json.dumps(row), flush=True)


def measure(shape: str, dtype: str, batch: int | None, rounds: int):
  """Yields the rows of one shape."""
  own, heads, width, side, prefix = SHAPES[shape]
  grid, tokens = (side, side), side * side
  rng = np.random.default_rng(0)
  arrays = [
    rng.normal(size=(batch or own, heads, *last)).astype(np.float32)
    for last in (*((prefix + tokens, width),) * 4, *((tokens, side),) * 2)
  ]
  arrays = [jnp.asarray(array, dtype) for array in arrays]  # gradient of the output, q, k, v, rel_h, rel_w
  calls, exact = {}, None
  for name, function in implementations(arrays[1], grid, prefix).items():
    with mock.patch.multiple(xla, **VARIANTS[name]) if name in VARIANTS else contextlib.nullcontext():
      programs = [jax.jit(program).lower(*arrays).compile() for program in passes(function)]
    out = [np.asarray(x, np.float32) for x in programs[1](*arrays)]
    exact = out if name == 'reference' else exact
    memory = [round(program.memory_analysis().temp_size_in_bytes / 2**20) for program in programs]
    calls[name] = [functools.partial(run, program, arrays) for program in programs], memory, error(name, out, exact)
  peer = torch_peer(arrays, grid, prefix)
  if peer:
    out = [tensor.detach().float().cpu().numpy() for tensor in peer[1]()]
    calls['torch'] = peer, [None, None], error('torch', out, exact)
  for i, what in enumerate(('forward', 'forward+backward')):
    seconds = {name: [] for name in calls}
    for _ in range(rounds):
      for name, (both, *_) in calls.items():
        started = time.perf_counter()
        both[i]()
        seconds[name].append(time.perf_counter() - started)
    first = np.asarray(next(iter(seconds.values())))
    for name, times in seconds.items():
      yield {
        'shape': shape,
        'batch': batch or own,
        'pass': what,
        'implementation': name,
        'ms': round(1e3 * float(np.median(times)), 3),
        'range': [round(1e3 * bound, 3) for bound in (min(times), max(times))],
        'ratio': round(float(np.median(np.asarray(times) / first)), 3),
        'temporary_mib': calls[name][1][i],
        'error': calls[name][2],
      }


def implementations(q: jax.Array, grid: tuple[int, int], prefix: int) -> dict[str, Callable]:
  """Returns functions of (q, k, v, rel_h, rel_w) by name; the reference comes first."""
  platform = jax.default_backend()
  found = {
    name: functools.partial(attention, grid=grid, prefix=prefix, implementation=name)
    for name in IMPLEMENTATIONS
    if name != 'auto' and why_not(name, platform, q.dtype, q.shape[3], q.shape[2], sum(grid)) is None
  }
  if platform == 'cpu':
    found |= dict.fromkeys(VARIANTS, functools.partial(plain_xla, grid, prefix))
    found['xla, jax.nn.softmax'] = functools.partial(library_softmax, grid, prefix)
  if 'cudnn' in found:
    found['bound'] = lambda q, k, v, *_: jax.nn.dot_product_attention(
      *(x.swapaxes(1, 2) for x in (q, k, v)), implementation='cudnn'
    ).swapaxes(1, 2)
  return found


def plain_xla(grid, prefix, q, k, v, rel_h, rel_w) -> jax.Array:
  """`xla`, called so that JAX does not reuse an earlier trace with other constants."""
  return xla.attention(q, k, v, *extra_channels(q.dtype, rel_h, rel_w, grid, prefix))


def library_softmax(grid, prefix, q, k, v, rel_h, rel_w) -> jax.Array:
  """All heads at once, with jax.nn.softmax."""
  q, k = appended(q, k, *extra_channels(q.dtype, rel_h, rel_w, grid, prefix))
  return jax.nn.softmax((q @ k.swapaxes(-1, -2)).astype(jnp.float32)).astype(v.dtype) @ v


def passes(function: Callable) -> tuple[Callable, Callable]:
  """Returns two functions of (gradient of the output, q, ...): the output, and the output with all gradients."""

  def both(dout, *arrays):
    out, backward = jax.vjp(function, *arrays)
    return out, *backward(dout)

  return (lambda _, *arrays: function(*arrays)), both


def run(program, arrays) -> None:
  jax.block_until_ready(program(*arrays))


def error(name: str, ours, exact) -> float | None:
  """Returns the largest relative error over all arrays; None for the bound, which computes something else."""
  if name == 'bound':
    return None
  return float(f'{max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(ours, exact)):.1e}')


def torch_peer(arrays, grid, prefix) -> tuple[Callable, Callable] | None:
  """Returns the same two passes in PyTorch, or None if it cannot run on this device."""
  try:
    import torch
    from torch.nn import functional
  except ImportError:
    return None
  device = {'cpu': 'cpu', 'gpu': 'cuda'}.get(jax.default_backend())
  if device is None or (device == 'cuda' and not torch.cuda.is_available()):
    return None
  dtype = getattr(torch, arrays[0].dtype.name)
  dout, *inputs = (torch.tensor(np.asarray(array, np.float32), device=device).to(dtype) for array in arrays)
  for tensor in inputs:
    tensor.requires_grad_()

  def forward(q, k, v, rel_h, rel_w):
    bias = (rel_h[..., :, None] + rel_w[..., None, :]).reshape(*rel_h.shape[:3], grid[0] * grid[1])
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=functional.pad(bias, (prefix, 0, prefix, 0)))

  def finished(out):
    if device == 'cuda':
      torch.cuda.synchronize()
    return out

  def only_forward():
    with torch.no_grad():
      return finished(forward(*inputs))

  def both():
    out = forward(*inputs)
    return finished([out, *torch.autograd.grad(out, inputs, dout)])

  return only_forward, both


if __name__ == '__main__':
  main()
