"""Flash attention with extra channels for NVIDIA GPUs (Ampere, Hopper): forward and backward, without an [N, N] array.

It covers shapes that cuDNN does not: before Hopper, cuDNN supports 128 channels per head, and a 64 x 64 grid alone adds
128. There 'auto' selects it in place of `xla` where the logits are large: it needs a tenth of the memory
(docs/benchmarks.md), but nobody has timed it on a GPU. It uses Pallas' Triton backend, which runs from Ampere on and is
deprecated since JAX 0.11; its successor, Mosaic GPU, needs a Hopper, where cuDNN supports every shape here.

A program computes one block of queries (in the backward pass also one of keys) in a loop over the other axis. Arrays
are zero-padded to whole blocks, and channels to powers of two, as Triton requires.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from ditsam_jax.ops.attention import cudnn
from ditsam_jax.ops.attention.channels import ATTENTION, HIDDEN

TYPES = ('bfloat16', 'float16', 'float32')
BLOCK = 64  # queries or keys; the operands and result of a product fit the registers of four warps
MIN_CHANNELS = 16  # of a product on tensor cores
LARGE = 4 << 20  # bytes of one head's logits in f32: 1024 tokens, a 32 x 32 grid
MAX_CHANNELS = 128  # per head, and for relative positions; more do not fit a block's shared memory


def attention(q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """q, k, v: [B, H, N, D], q unscaled; queries [B, H, N, R] and keys [1, 1, N, R] are those of `extra_channels`."""
  *_, length, width = q.shape
  scaled = q * jnp.asarray(width**-0.5, q.dtype)
  out: Any = _attention(length, *map(_padded, (scaled, k, v, queries, keys)))  # custom_vjp hides the type
  return out[:, :, :length, :width]


def why_not(dtype, width: int, length: int, channels: int) -> str | None:
  """See `choice.why_not`."""
  del length
  capability = cudnn.compute_capability()
  if capability is not None and capability < cudnn.AMPERE:
    return f'it needs a GPU of compute capability 8.0, not {".".join(map(str, capability))}'
  if jnp.dtype(dtype).name not in TYPES:
    return f'it supports {", ".join(TYPES)}, not {jnp.dtype(dtype).name}'
  if max(width, channels) > MAX_CHANNELS:
    limit = MAX_CHANNELS
    return f'it supports {limit} channels per head and {limit} for relative positions, not {width} and {channels}'
  return None


def is_preferred_to_xla(*shapes: tuple) -> bool:
  """Whether 'auto' selects this where cuDNN does not support all these shapes, each (dtype, width, length, channels).

  It does from LARGE logits on, in 16 bits. f32 blocks would fill an A100's shared memory. The GPU must be known.
  """
  capability = cudnn.compute_capability()
  if capability is None or capability < cudnn.AMPERE:  # Triton supports no older GPU
    return False
  short = all(jnp.dtype(dtype).itemsize == 2 for dtype, *_ in shapes)
  return short and max(4 * length**2 for _, _, length, _ in shapes) >= LARGE


def _padded(x: jax.Array) -> jax.Array:
  """Zero-pads tokens to whole blocks and channels to a power of two."""
  tokens, channels = x.shape[2:]
  wanted = max(MIN_CHANNELS, pl.next_power_of_2(channels))
  return jnp.pad(x, ((0, 0), (0, 0), (0, -tokens % BLOCK), (0, wanted - channels)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(length, q, k, v, x, y) -> jax.Array:
  return _forward(length, q, k, v, x, y)[0]


def _attention_forward(length, q, k, v, x, y):
  out, logsumexp = (checkpoint_name(kept, ATTENTION) for kept in _forward(length, q, k, v, x, y))
  return out, (q, k, v, x, y, out, logsumexp)


def _attention_backward(length, residuals, dout):
  q, k, v, x, y, out, logsumexp = residuals
  delta = (dout.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
  arrays = q, k, v, x, y, dout, logsumexp, delta
  return *_backward(length, *arrays), jnp.zeros_like(y)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------------------------------------------------ kernels
# Blocks: q, dout [bq, D]; k, v [bk, D]; x [bq, R]; y [bk, R]; logits, weights and their gradients [bq, bk].


def _dot(a: jax.Array, b: jax.Array, transposed: str = '') -> jax.Array:
  """f32 matrix product, with 'a' or 'b' transposed."""
  axes = (((0,) if transposed == 'a' else (1,)), ((1,) if transposed == 'b' else (0,)))
  return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _read(ref, block=0) -> jax.Array:
  return ref[0, 0, pl.ds(block * BLOCK, BLOCK)]


def _logits(q, k, x, y, block, length: int) -> jax.Array:
  """Logits of a block of queries and key block `block`; keys past the last token are masked."""
  logits = _dot(q, k, 'b') + _dot(x, y, 'b')
  valid = block * BLOCK + jax.lax.broadcasted_iota(jnp.int32, logits.shape, 1) < length
  return jnp.where(valid, logits, HIDDEN)


def _forward_kernel(q_ref, k_ref, v_ref, x_ref, y_ref, out_ref, logsumexp_ref, *, length):
  q, x = _read(q_ref), _read(x_ref)

  def add(j, carry):
    maximum, total, acc = carry
    k, v, y = (_read(ref, j) for ref in (k_ref, v_ref, y_ref))
    logits = _logits(q, k, x, y, j, length)
    new = jnp.maximum(maximum, logits.max(1))
    weights, rescale = jnp.exp(logits - new[:, None]), jnp.exp(maximum - new)
    acc = acc * rescale[:, None] + _dot(weights.astype(v.dtype), v)
    return new, total * rescale + weights.sum(1), acc

  start = jnp.full(BLOCK, HIDDEN, jnp.float32), jnp.zeros(BLOCK, jnp.float32), jnp.zeros(q.shape, jnp.float32)
  maximum, total, acc = jax.lax.fori_loop(0, pl.cdiv(length, BLOCK), add, start)
  out_ref[0, 0] = (acc / total[:, None]).astype(out_ref.dtype)
  logsumexp_ref[0, 0] = maximum + jnp.log(total)


def _queries_kernel(q_ref, k_ref, v_ref, x_ref, y_ref, dout_ref, logsumexp_ref, delta_ref, dq_ref, dx_ref, *, length):
  """Gradients of a block of queries and of their extra channels."""
  q, x, dout = (_read(ref) for ref in (q_ref, x_ref, dout_ref))
  logsumexp, delta = _read(logsumexp_ref)[:, None], _read(delta_ref)[:, None]

  def add(j, carry):
    dq, dx = carry
    k, v, y = (_read(ref, j) for ref in (k_ref, v_ref, y_ref))
    weights = jnp.exp(_logits(q, k, x, y, j, length) - logsumexp)
    dlogits = (weights * (_dot(dout, v, 'b') - delta)).astype(k.dtype)
    return dq + _dot(dlogits, k), dx + _dot(dlogits, y)

  start = jnp.zeros(q.shape, jnp.float32), jnp.zeros(x.shape, jnp.float32)
  dq, dx = jax.lax.fori_loop(0, pl.cdiv(length, BLOCK), add, start)
  dq_ref[0, 0], dx_ref[0, 0] = dq.astype(dq_ref.dtype), dx.astype(dx_ref.dtype)


def _keys_kernel(q_ref, k_ref, v_ref, x_ref, y_ref, dout_ref, logsumexp_ref, delta_ref, dk_ref, dv_ref, *, length):
  """Gradients of a block of keys and values. Queries past the last token have a zero `dout` and contribute nothing."""
  k, v, y = (_read(ref) for ref in (k_ref, v_ref, y_ref))
  own = pl.program_id(2)

  def add(i, carry):
    dk, dv = carry
    q, x, dout = (_read(ref, i) for ref in (q_ref, x_ref, dout_ref))
    weights = jnp.exp(_logits(q, k, x, y, own, length) - _read(logsumexp_ref, i)[:, None])
    dlogits = weights * (_dot(dout, v, 'b') - _read(delta_ref, i)[:, None])
    return dk + _dot(dlogits.astype(q.dtype), q, 'a'), dv + _dot(weights.astype(q.dtype), dout, 'a')

  start = jnp.zeros(k.shape, jnp.float32), jnp.zeros(v.shape, jnp.float32)
  dk, dv = jax.lax.fori_loop(0, pl.cdiv(length, BLOCK), add, start)
  dk_ref[0, 0], dv_ref[0, 0] = dk.astype(dk_ref.dtype), dv.astype(dv_ref.dtype)


# -------------------------------------------------------------------------------------------------------------- calls


def _block(x) -> pl.BlockSpec:
  """A program's block of an array [B, H, N, C] or [B, H, N]."""
  return pl.BlockSpec((1, 1, BLOCK, *x.shape[3:]), lambda b, h, i: (b, h, i, *(0,) * (x.ndim - 3)))


def _all(x) -> pl.BlockSpec:
  """All tokens of a head; axes of size one are broadcast over heads and images."""

  def index(b, h, i):
    del i
    return (b if x.shape[0] > 1 else 0, h if x.shape[1] > 1 else 0, *(0,) * (x.ndim - 2))

  return pl.BlockSpec((1, 1, *x.shape[2:]), index)


def _shared(x) -> pl.BlockSpec:
  """Like `_block`, for the keys' extra channels, which all heads and images share."""
  return pl.BlockSpec((1, 1, BLOCK, x.shape[3]), lambda b, h, i: (0, 0, i, 0))


def _call(kernel, length: int, arrays, specs, like, name: str):
  """Runs one program per block and head; outputs have the shapes and types of `like`."""
  q = arrays[0]
  return pl.pallas_call(
    functools.partial(kernel, length=length),
    grid=(*q.shape[:2], q.shape[2] // BLOCK),
    in_specs=specs,
    out_specs=[_block(x) for x in like],
    out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in like],
    compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=2),
    name=name,
  )(*arrays)


def _forward(length, q, k, v, x, y):
  """Returns the output and the logsumexp of the logits, f32 [B, H, N]."""
  specs = [_block(q), _all(k), _all(v), _block(x), _all(y)]
  logsumexp = jax.ShapeDtypeStruct(q.shape[:3], jnp.float32)
  return _call(_forward_kernel, length, (q, k, v, x, y), specs, (q, logsumexp), 'attention_forward')


def _backward(length, q, k, v, x, y, dout, logsumexp, delta):
  """Returns the gradients of q, k, v and x."""
  arrays = q, k, v, x, y, dout, logsumexp, delta
  dq, dx = _call(
    _queries_kernel,
    length,
    arrays,
    [_block(q), _all(k), _all(v), _block(x), _all(y), _block(dout), _block(logsumexp), _block(delta)],
    (q, x),
    'attention_queries',
  )
  dk, dv = _call(
    _keys_kernel,
    length,
    arrays,
    [_all(q), _block(k), _block(v), _all(x), _shared(y), _all(dout), _all(logsumexp), _all(delta)],
    (k, v),
    'attention_keys',
  )
  return dq, dk, dv, dx
