"""Selects the attention implementation by platform, type and shape."""

import functools
from collections.abc import Callable

import jax

from ditsam_jax.ops.attention import cudnn, pallas_gpu, pallas_tpu, reference, xla
from ditsam_jax.ops.attention.channels import extra_channels
from ditsam_jax.ops.attention.shards import per_shard

IMPLEMENTATIONS = ('auto', 'reference', 'xla', 'cudnn', 'pallas_tpu', 'pallas_gpu')
FASTEST = {'tpu': 'pallas_tpu', 'cuda': 'cudnn'}  # by platform, where it can; `xla` elsewhere
_MODULES = {'xla': xla, 'cudnn': cudnn, 'pallas_tpu': pallas_tpu, 'pallas_gpu': pallas_gpu}
_PLATFORM = {'cudnn': 'cuda', 'pallas_tpu': 'tpu', 'pallas_gpu': 'cuda'}


def why_not(name: str, platform: str | None, dtype, width: int, length: int, channels: int) -> str | None:
  """Why an implementation is unsupported, as an English clause, or None if it is supported.

  Args:
    name: one of IMPLEMENTATIONS.
    platform: 'cpu', 'tpu', 'cuda' (also as JAX calls it, 'gpu'), or None if it is not known.
    dtype: of queries, keys and values.
    width: D, channels of a head.
    length: N, tokens.
    channels: R, rows plus columns of the grid.
  """
  if name not in IMPLEMENTATIONS:
    return f'there is no such implementation; choose one of {", ".join(IMPLEMENTATIONS)}'
  platform = 'cuda' if platform == 'gpu' else platform
  if platform and platform != _PLATFORM.get(name, platform):
    return f'it runs on {_PLATFORM[name]}, this is {platform}'
  return _MODULES[name].why_not(dtype, width, length, channels) if name in _PLATFORM else None


def fastest(platform: str, *shapes: tuple) -> str:
  """The fastest implementation on a platform that can compute all of these shapes, each (dtype, width, length, channels).

  A training step, whose platform is known, names it: 'auto' keeps intermediate values for the gradients of all platforms.
  """
  name = FASTEST.get('cuda' if platform == 'gpu' else platform, 'xla')
  return 'xla' if any(why_not(name, platform, *shape) for shape in shapes) else name


@functools.partial(jax.jit, static_argnames=('grid', 'prefix', 'implementation'))  # traced once, not for every block
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
  """Attention by the implementation of that name; arguments and errors as of `ditsam_jax.ops.attention.attention`."""
  shape = q.dtype, q.shape[3], q.shape[2], sum(grid)
  if problem := why_not(implementation, None, *shape):
    raise ValueError(f'attention {implementation!r}: {problem}')
  if implementation == 'reference':
    return reference.attention(q, k, v, rel_h, rel_w, grid, prefix)
  function = _best(*shape) if implementation == 'auto' else _MODULES[implementation].attention
  return per_shard(function)(q, k, v, *extra_channels(q.dtype, rel_h, rel_w, grid, prefix))


def _best(*shape) -> Callable[..., jax.Array]:
  """On each platform the fastest that can.

  The platform is known when the program is lowered, maybe for a machine other than this one, so all are prepared.
  """
  fastest = {
    platform: _MODULES[name].attention for platform, name in FASTEST.items() if why_not(name, platform, *shape) is None
  }

  def run(*arrays):
    return jax.lax.platform_dependent(*arrays, default=xla.attention, **fastest)

  return run
