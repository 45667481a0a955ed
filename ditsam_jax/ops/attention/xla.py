"""Attention in plain XLA, with extra channels: used on CPUs, and wherever no kernel supports the input.

A loop processes a few heads at a time, and chunks of queries if the sequence is long, so the logits of one iteration
stay in the CPU's cache, where each pass over them is cheap. The backward pass recomputes the logits. On CPUs this is
faster than storing them, because writing and reading [B, H, N, N] costs more than a product. docs/benchmarks.md has the
figures and the slower alternatives: all heads at once, chunks of queries of all heads, single heads, transposed logits,
an explicit bias, `jax.nn.softmax`. Small logits fit the cache and are stored.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from ditsam_jax.ops.attention.channels import ATTENTION, appended

ON_CPU = 10 * 2**20  # bytes of f32 logits per iteration: two heads at 512 x 512
SMALL = 5 * 2**20  # bytes of logits up to which they are stored, not recomputed
ELSEWHERE = 256 * 2**20  # enough to fill an accelerator
HEADS = 2  # minimum per iteration if the number of heads is even: one for each of two cores


def attention(q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """q, k, v: [B, H, N, D], q unscaled; queries [B, H, N, R] and keys [1, 1, N, R] are those of `extra_channels`."""
  batch, heads, length, width = q.shape
  q, k = appended(q, k, queries, keys)
  q, k, v = (x.reshape(batch * heads, length, x.shape[-1]) for x in (q, k, v))
  known = batch if isinstance(batch, int) else 1  # an exported program is traced for batches of any size
  if 4 * known * heads * length**2 <= SMALL:
    weights, total, _ = _softmax(q, k)
    out = (_product(weights, v, 'gnm,gmd->gnd') / total).astype(v.dtype)
  else:
    out: Any = _chunked(q, k, v, width)  # custom_vjp hides the type
  return out.reshape(batch, heads, length, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked(q, k, v, width) -> jax.Array:
  """Attention in chunks of heads and queries. Only k's first `width` channels get a gradient; codes are constant."""
  del width
  return _forward(q, k, v)[0]


def _chunked_forward(q, k, v, width):
  del width
  out, logsumexp = (checkpoint_name(kept, ATTENTION) for kept in _forward(q, k, v))
  return out, (q, k, v, out, logsumexp)


def _chunked_backward(width, residuals, gradient):
  return _per_platform(functools.partial(_backward_chunks, width=width))(*residuals, gradient)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _forward(q, k, v):
  return _per_platform(_forward_chunks)(q, k, v)


def _per_platform(function):
  """Passes `function` the byte limit of the platform that the program is compiled for."""

  def run(*arrays):
    return jax.lax.platform_dependent(
      *arrays, cpu=functools.partial(function, limit=ON_CPU), default=functools.partial(function, limit=ELSEWHERE)
    )

  return run


# ------------------------------------------------------------------------------------------ arrays [G, N, C], G heads


def _product(a: jax.Array, b: jax.Array, axes: str) -> jax.Array:
  """Einsum that accumulates and returns at least f32."""
  return jnp.einsum(axes, a.astype(b.dtype), b, preferred_element_type=jnp.promote_types(b.dtype, jnp.float32))


def _softmax(q, k):
  """Unnormalised weights, their sums, and the maxima of the logits. Normalising the output is cheaper."""
  logits = _product(q, k, 'gnc,gmc->gnm')
  maximum = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp(logits - maximum)
  return weights, weights.sum(-1, keepdims=True), maximum


def _forward_chunks(q, k, v, *, limit):
  heads, queries = _chunk_size(q.shape[0], q.shape[1], limit)

  def one_chunk(q, k, v):
    weights, total, maximum = _softmax(q, k)
    return (_product(weights, v, 'gnm,gmd->gnd') / total).astype(v.dtype), maximum + jnp.log(total)

  def some_heads(arrays):
    q, k, v = arrays
    out, logsumexp = jax.lax.map(lambda chunk: one_chunk(chunk, k, v), _chunks(q, queries))
    return _joined(out, q), _joined(logsumexp, q)

  out, logsumexp = jax.lax.map(some_heads, tuple(_groups(x, heads) for x in (q, k, v)))
  return out.reshape(v.shape), logsumexp.reshape(*q.shape[:2], 1)


def _backward_chunks(q, k, v, out, logsumexp, dout, *, width, limit):
  heads, queries = _chunk_size(q.shape[0], q.shape[1], limit)
  delta = _product(dout, out, 'gnd,gnd->gn')[..., None]

  def one_chunk(q, delta, logsumexp, dout, k, v):
    weights = jnp.exp(_product(q, k, 'gnc,gmc->gnm') - logsumexp)
    dlogits = weights * (_product(dout, v, 'gnd,gmd->gnm') - delta)
    return (
      _product(dlogits, k, 'gnm,gmc->gnc').astype(q.dtype),
      _product(dlogits, q[..., :width], 'gnm,gnc->gmc'),
      _product(weights, dout, 'gnm,gnd->gmd'),
    )

  def some_heads(arrays):
    q, k, v, delta, logsumexp, dout = arrays

    def step(sums, chunk):
      q, delta, logsumexp, dout = chunk
      dq, dk, dv = one_chunk(q, delta, logsumexp, dout, k, v)
      return (sums[0] + dk, sums[1] + dv), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in (k[..., :width], v))
    (dk, dv), dq = jax.lax.scan(step, zeros, tuple(_chunks(x, queries) for x in (q, delta, logsumexp, dout)))
    return _joined(dq, q), dk.astype(k.dtype), dv.astype(v.dtype)

  arrays = q, k, v, delta, logsumexp, dout
  dq, dk, dv = jax.lax.map(some_heads, tuple(_groups(x, heads) for x in arrays))
  dk = jnp.pad(dk.reshape(*k.shape[:2], width), ((0, 0), (0, 0), (0, k.shape[2] - width)))
  return dq.reshape(q.shape), dk, dv.reshape(v.shape)


def _chunk_size(heads: int, length: int, limit: int) -> tuple[int, int]:
  """Heads and queries per chunk, for about `limit` bytes of f32 logits."""
  most = max(HEADS, limit // (4 * length**2))
  if isinstance(heads, int):  # else a multiple of a batch of any size
    most = min(most, heads)
  heads_per_chunk = max(divisor for divisor in range(1, most + 1) if heads % divisor == 0)
  chunks = -(-4 * heads_per_chunk * length**2 // limit)
  return heads_per_chunk, -(-length // chunks)


def _groups(x: jax.Array, heads: int) -> jax.Array:
  return x.reshape(-1, heads, *x.shape[1:])


def _chunks(x: jax.Array, queries: int) -> jax.Array:
  """[G, N, C] -> [chunks, G, queries, C]; the last chunk is zero-padded, which adds nothing to the gradients."""
  chunks = -(-x.shape[1] // queries)
  x = jnp.pad(x, ((0, 0), (0, chunks * queries - x.shape[1]), (0, 0)))
  return x.reshape(x.shape[0], chunks, queries, x.shape[2]).swapaxes(0, 1)


def _joined(x: jax.Array, like: jax.Array) -> jax.Array:
  """The inverse of `_chunks`, cut to the length of `like`."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, x.shape[3])[:, : like.shape[1]]
