"""Selects the attention implementation by platform, type and shape."""

import functools
from collections.abc import Callable

import jax

from ditsam_jax.ops.attention import cudnn, pallas_gpu, pallas_tpu, reference, xla
from ditsam_jax.ops.attention.channels import extra_channels
from ditsam_jax.ops.attention.shards import per_shard

IMPLEMENTATIONS = ('auto', 'reference', 'xla', 'cudnn', 'pallas_tpu', 'pallas_gpu')
PREFERRED = {'tpu': ('pallas_tpu',), 'cuda': ('cudnn', 'pallas_gpu')}  # the first that is supported; otherwise `xla`
_MODULES = {'xla': xla, 'cudnn': cudnn, 'pallas_tpu': pallas_tpu, 'pallas_gpu': pallas_gpu}
_PLATFORM = {'cudnn': 'cuda', 'pallas_tpu': 'tpu', 'pallas_gpu': 'cuda'}


def why_not(name: str, platform: str | None, dtype, width: int, length: int, channels: int) -> str | None:
  """Why an implementation is unsupported, as an English clause, or None if it is supported.

  Args:
    name: one of IMPLEMENTATIONS.
    platform: 'cpu', 'tpu', 'cuda' (or JAX's name for it, 'gpu'), or None if unknown.
    dtype: of queries, keys and values.
    width: D, channels per head.
    length: N, number of tokens.
    channels: R, rows plus columns of the grid.
  """
  if name not in IMPLEMENTATIONS:
    return f'there is no such implementation; choose one of {", ".join(IMPLEMENTATIONS)}'
  platform = 'cuda' if platform == 'gpu' else platform
  if platform and platform != _PLATFORM.get(name, platform):
    return f'it runs on {_PLATFORM[name]}, this is {platform}'
  return _MODULES[name].why_not(dtype, width, length, channels) if name in _PLATFORM else None


def fastest(platform: str, *shapes: tuple) -> str:
  """The implementation that 'auto' selects on a platform for these shapes, each (dtype, width, length, channels).

  A training step knows its platform and selects an implementation here, because the gradients of 'auto' keep
  intermediate values for all platforms.
  """
  platform = 'cuda' if platform == 'gpu' else platform
  for name in PREFERRED.get(platform, ()):
    supported = not any(why_not(name, platform, *shape) for shape in shapes)
    if supported and (name != 'pallas_gpu' or pallas_gpu.is_preferred_to_xla(*shapes)):
      return name
  return 'xla'


@functools.partial(jax.jit, static_argnames=('grid', 'prefix', 'implementation'))  # traced once, not once per block
def compute(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  rel_h: jax.Array,
  rel_w: jax.Array,
  *,
  grid: tuple[int, int],
  prefix: int,
  implementation: str,
) -> jax.Array:
  """Computes attention with `implementation`. For arguments and errors see `ditsam_jax.ops.attention.attention`."""
  shape = q.dtype, q.shape[3], q.shape[2], sum(grid)
  if problem := why_not(implementation, None, *shape):
    raise ValueError(f'attention {implementation!r}: {problem}')
  if implementation == 'reference':
    return reference.attention(q, k, v, rel_h, rel_w, grid, prefix)
  function = _best(*shape) if implementation == 'auto' else _MODULES[implementation].attention
  return per_shard(function)(q, k, v, *extra_channels(q.dtype, rel_h, rel_w, grid, prefix))


def _best(*shape) -> Callable[..., jax.Array]:
  """Returns a function that runs the fastest supported implementation on each platform.

  The platform is known only when the program is lowered, possibly for another machine, so all candidates are traced.
  """
  names = {platform: fastest(platform, shape) for platform in PREFERRED}
  kernels = {platform: _MODULES[name].attention for platform, name in names.items() if name != 'xla'}

  def run(*arrays):
    return jax.lax.platform_dependent(*arrays, default=xla.attention, **kernels)

  return run
