"""NVIDIA's flash attention (cuDNN) through JAX, with relative positions as extra channels.

cuDNN also accepts a bias, but as an [N, N] array per head, which this op avoids.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from ditsam_jax.ops.attention.channels import appended

TYPES = ('bfloat16', 'float16')
MULTIPLE = 8  # cuDNN requires a multiple of 8 channels
AMPERE, HOPPER = (8, 0), (9, 0)

_assumed: contextvars.ContextVar[tuple[int, int] | None] = contextvars.ContextVar('_assumed', default=None)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """q, k, v: [B, H, N, D], q unscaled; queries [B, H, N, R] and keys [1, 1, N, R] are those of `extra_channels`."""
  batch, _, length, width = v.shape
  q, k = appended(q, k, queries, keys)
  # Equal widths, because only Hopper supports narrower values; an even length, which JAX requires for gradients.
  odd, channels = length % 2, _padded(q.shape[-1])
  q, k, v = (jnp.pad(x, ((0, 0), (0, 0), (0, odd), (0, channels - x.shape[-1]))).swapaxes(1, 2) for x in (q, k, v))
  lengths = jnp.full((batch,), length, jnp.int32) if odd else None
  out = jax.nn.dot_product_attention(
    q, k, v, scale=1.0, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation='cudnn'
  )
  return out[:, :length, :, :width].swapaxes(1, 2)


def is_kept(primitive, *_, **__) -> bool:
  """A rematerialisation policy: keeps output and logsumexp of cuDNN's forward pass, to which JAX gives no name."""
  return primitive.name == 'dot_product_attention_fwd_wrapper'


def why_not(dtype, width: int, length: int, channels: int) -> str | None:
  """See `choice.why_not`."""
  if jnp.dtype(dtype).name not in TYPES:
    return f'it supports {" and ".join(TYPES)}, not {jnp.dtype(dtype).name}'
  capability = compute_capability()
  if capability is None:
    return 'JAX sees no CUDA GPU; install jax[cuda12] or jax[cuda13]'
  if capability < AMPERE:
    return f'it needs a GPU of compute capability 8.0, not {".".join(map(str, capability))}'
  limit = 256 if capability >= HOPPER else 128
  if _padded(width + channels) > limit:
    return (
      f'a head has {width} channels and {channels} for relative positions; on a GPU of compute capability '
      f'{".".join(map(str, capability))} it supports {limit} in total'
    )
  return None


def _padded(channels: int) -> int:
  return -(-channels // MULTIPLE) * MULTIPLE


def compute_capability() -> tuple[int, int] | None:
  """The compute capability of the NVIDIA GPU that programs are for (see `assumed`), or None without a GPU."""
  return _assumed.get() or _local()


@contextlib.contextmanager
def assumed(capability: tuple[int, int]) -> Iterator[None]:
  """Inside, programs are for a GPU of this compute capability, whatever this machine has."""
  token = _assumed.set(capability)
  try:
    yield
  finally:
    _assumed.reset(token)


@functools.cache
def _local() -> tuple[int, int] | None:
  """The compute capability of this process' first NVIDIA GPU."""
  try:
    device = jax.devices('cuda')[0]
  except RuntimeError:
    return None
  major, minor = device.compute_capability.split('.')
  return int(major), int(minor)
