"""Attention in plain XLA, with extra channels: what runs on CPU, and everywhere else where no kernel can.

Few heads at a time, in a loop, and not all queries of a long sequence: the logits of one turn then stay in the
processor's cache, where each pass over them is cheap. The backward pass computes them again instead of keeping them. On
CPU this takes less time than keeping them, since writing and reading [B, H, N, N] costs more than one product;
docs/benchmarks.md has the figures, also of what lost: all heads at once, chunks of queries of all heads, single heads,
transposed logits, an explicit bias, `jax.nn.softmax`. Small logits fit the cache as they are, and are kept.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from ditsam_jax.ops.attention.channels import appended

ON_CPU = 10 * 2**20  # bytes of f32 logits at a time: two heads at 512 x 512
SMALL = 5 * 2**20  # bytes of all logits that are kept instead of computed again
ELSEWHERE = 256 * 2**20  # enough to fill an accelerator
HEADS = 2  # at least so many at a time where their number is even: one for each of two cores


def attention(q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """q, k, v: [B, H, N, D], q not scaled; queries [B, H, N, R] and keys [1, 1, N, R] as of `extra_channels`."""
  batch, heads, length, width = q.shape
  q, k = appended(q, k, queries, keys)
  q, k, v = (x.reshape(batch * heads, length, x.shape[-1]) for x in (q, k, v))
  if 4 * batch * heads * length**2 <= SMALL:
    weights, total, _ = _softmax(q, k)
    out = (_product(weights, v, 'gnm,gmd->gnd') / total).astype(v.dtype)
  else:
    out: Any = _in_turns(q, k, v, width)  # custom_vjp hides its type
  return out.reshape(batch, heads, length, width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _in_turns(q, k, v, width) -> jax.Array:
  """`width`: channels of k that get a gradient; the codes behind them are constants."""
  del width
  return _forward(q, k, v)[0]


def _in_turns_forward(q, k, v, width):
  del width
  out, logsumexp = _forward(q, k, v)
  return out, (q, k, v, out, logsumexp)


def _in_turns_backward(width, kept, gradient):
  return _per_platform(functools.partial(_backward_in_turns, width=width))(*kept, gradient)


_in_turns.defvjp(_in_turns_forward, _in_turns_backward)


def _forward(q, k, v):
  return _per_platform(_forward_in_turns)(q, k, v)


def _per_platform(function):
  """`function` with as many bytes at a time as suit the platform that the program is compiled for."""

  def run(*arrays):
    return jax.lax.platform_dependent(
      *arrays, cpu=functools.partial(function, limit=ON_CPU), default=functools.partial(function, limit=ELSEWHERE)
    )

  return run


# ---------------------------------------------------------------------------------------------- [G, N, C], some heads


def _product(a: jax.Array, b: jax.Array, axes: str) -> jax.Array:
  """Einsum whose sums and result are f32 at least."""
  return jnp.einsum(axes, a.astype(b.dtype), b, preferred_element_type=jnp.promote_types(b.dtype, jnp.float32))


def _softmax(q, k):
  """Weights that do not sum to one, their sums, and the logits' maxima: dividing outputs is cheaper than weights."""
  logits = _product(q, k, 'gnc,gmc->gnm')
  maximum = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
  weights = jnp.exp(logits - maximum)
  return weights, weights.sum(-1, keepdims=True), maximum


def _forward_in_turns(q, k, v, *, limit):
  heads, queries = _turn(q.shape[0], q.shape[1], limit)

  def turn(q, k, v):
    weights, total, maximum = _softmax(q, k)
    return (_product(weights, v, 'gnm,gmd->gnd') / total).astype(v.dtype), maximum + jnp.log(total)

  def some_heads(arrays):
    q, k, v = arrays
    out, logsumexp = jax.lax.map(lambda chunk: turn(chunk, k, v), _chunks(q, queries))
    return _whole(out, q), _whole(logsumexp, q)

  out, logsumexp = jax.lax.map(some_heads, tuple(_groups(x, heads) for x in (q, k, v)))
  return out.reshape(v.shape), logsumexp.reshape(*q.shape[:2], 1)


def _backward_in_turns(q, k, v, out, logsumexp, dout, *, width, limit):
  heads, queries = _turn(q.shape[0], q.shape[1], limit)
  delta = _product(dout, out, 'gnd,gnd->gn')[..., None]

  def turn(q, delta, logsumexp, dout, k, v):
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
      dq, dk, dv = turn(q, delta, logsumexp, dout, k, v)
      return (sums[0] + dk, sums[1] + dv), dq

    zeros = tuple(jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)) for x in (k[..., :width], v))
    (dk, dv), dq = jax.lax.scan(step, zeros, tuple(_chunks(x, queries) for x in (q, delta, logsumexp, dout)))
    return _whole(dq, q), dk.astype(k.dtype), dv.astype(v.dtype)

  arrays = q, k, v, delta, logsumexp, dout
  dq, dk, dv = jax.lax.map(some_heads, tuple(_groups(x, heads) for x in arrays))
  dk = jnp.pad(dk.reshape(*k.shape[:2], width), ((0, 0), (0, 0), (0, k.shape[2] - width)))
  return dq.reshape(q.shape), dk, dv.reshape(v.shape)


def _turn(heads: int, length: int, limit: int) -> tuple[int, int]:
  """How many of all heads, and of the queries, one turn takes for `limit` bytes of f32 logits."""
  most = max(HEADS, limit // (4 * length**2))
  some = max(divisor for divisor in range(1, min(most, heads) + 1) if heads % divisor == 0)
  turns = -(-4 * some * length**2 // limit)
  return some, -(-length // turns)


def _groups(x: jax.Array, heads: int) -> jax.Array:
  return x.reshape(-1, heads, *x.shape[1:])


def _chunks(x: jax.Array, queries: int) -> jax.Array:
  """[G, N, C] -> [turns, G, queries, C]; zeros fill the last one, and add zeros to every gradient."""
  turns = -(-x.shape[1] // queries)
  x = jnp.pad(x, ((0, 0), (0, turns * queries - x.shape[1]), (0, 0)))
  return x.reshape(x.shape[0], turns, queries, x.shape[2]).swapaxes(0, 1)


def _whole(x: jax.Array, like: jax.Array) -> jax.Array:
  """The inverse of `_chunks` for an array as long as `like`."""
  x = x.swapaxes(0, 1)
  return x.reshape(x.shape[0], -1, x.shape[3])[:, : like.shape[1]]
