"""Flash attention with extra channels for TPUs: forward and backward, without an [N, N] array in HBM.

Online softmax over blocks of keys (arXiv 2205.14135). Everything is transposed: arrays are [B, H, D, N] and logits
[keys, queries]. A TPU tiles the last axis by 128 lanes and the one before by 8 sublanes, so

  - N is hardly padded, while D = 64 or 80 as the last axis would be padded to 128: this halves the memory of what is
    saved for the backward pass;
  - per-query values (maximum, sum, logsumexp) are rows that broadcast over the logits: reductions over keys add whole
    registers, and a logsumexp of [1, N] takes four bytes per query instead of 512;
  - blocks of logits are never transposed, only blocks of keys and values.

The queries' relative terms [N, rows + columns] multiply the keys' codes, so no bias is added elementwise. Up to 128
channels in all, as with D = 64 and 32 x 32 tokens, they are stacked below queries and keys inside the kernel: one
product fills the systolic array, where two would half fill it twice. So are the gradients of queries and terms.

One backward kernel computes all gradients from one recomputation of the weights. It accumulates the gradients of all
keys and values of a head in VMEM (2 D N floats), which limits N.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from ditsam_jax.ops.attention.channels import ATTENTION, HIDDEN

LANES = 128
LARGEST_BLOCK = {'bfloat16': 768, 'float32': 512}  # queries or keys; five f32 [768, 768] arrays take 11 MiB of VMEM
STEP = 256**2  # overhead of a grid step (0.35 us), in logits that could be computed in that time
SYSTOLIC = 128  # rows and columns of a systolic array of v5e and v5p; v6e's has 256
LONGEST = 8192  # tokens; a 64 x 64 grid with 64 text slots has 4160
VMEM_LIMIT = 16 * 2**20  # of 128 MiB (v5e, v6e) or 64 MiB (v5p); XLA keeps other values in the rest


def attention(q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array) -> jax.Array:
  """q, k, v: [B, H, N, D], q unscaled; queries [B, H, N, R] and keys [1, 1, N, R] are those of `extra_channels`."""
  return _transpose(_attention(*map(_transpose, (q, k, v, queries, keys))))


def why_not(dtype, width: int, length: int, channels: int) -> str | None:
  """See `choice.why_not`."""
  if jnp.dtype(dtype).name not in LARGEST_BLOCK:
    return f'it supports {" and ".join(LARGEST_BLOCK)}, not {jnp.dtype(dtype).name}'
  if length > LONGEST:
    return f'it supports up to {LONGEST} tokens, not {length}'
  return None


def _transpose(x: jax.Array) -> jax.Array:
  return x.swapaxes(-1, -2)


class _Blocks(NamedTuple):
  """Splits N tokens into blocks of `size`; the last block may extend past the end."""

  length: int
  size: int

  @property
  def count(self) -> int:
    return pl.cdiv(self.length, self.size)


def _blocks(length: int, dtype) -> _Blocks:
  """Chooses the block size with the least work: logits in whole blocks plus grid steps."""
  sizes = range(LANES, LARGEST_BLOCK[jnp.dtype(dtype).name] + 1, LANES)
  return _Blocks(length, min(sizes, key=lambda size: pl.cdiv(length, size) ** 2 * (size**2 + STEP)))


@jax.custom_vjp
def _attention(q, k, v, x, y):
  return _forward(q, k, v, x, y)[0]


def _attention_forward(q, k, v, x, y):
  out, logsumexp = (checkpoint_name(kept, ATTENTION) for kept in _forward(q, k, v, x, y))
  return out, (q, k, v, x, y, out, logsumexp)


def _attention_backward(residuals, gradient):
  q, k, v, x, y, out, logsumexp = residuals
  return *_backward(q, k, v, x, y, out, logsumexp, gradient), jnp.zeros_like(y)


_attention.defvjp(_attention_forward, _attention_backward)


# ------------------------------------------------------------------------------------------------------------ kernels
# Blocks: q, dout, out [D, bq]; k, v [D, bk]; x [R, bq]; y [R, bk]; logits, weights and their gradients [bk, bq].


def _dot(a: jax.Array, b: jax.Array, over: str) -> jax.Array:
  """f32 matrix product over 'rows' (both first axes), 'columns' (both last axes) or 'inner' (a @ b).

  f32 inputs use the model's precision: bf16, or `jax_default_matmul_precision` if set.
  """
  axes = {'rows': ((0,), (0,)), 'columns': ((1,), (1,)), 'inner': ((1,), (0,))}[over]
  return jax.lax.dot_general(a, b, (axes, ((), ())), preferred_element_type=jnp.float32)


def _read(ref, index: int | jax.Array = 0, blocks: _Blocks | None = None) -> jax.Array:
  """Reads a block as a matrix; with `blocks`, zeroes the columns past the last token, whose content is undefined."""
  x = ref[0, 0]
  if blocks is None:
    return x
  column = jax.lax.broadcasted_iota(jnp.int32, x.shape, 1)
  return jnp.where(column < blocks.length - index * blocks.size, x, jnp.zeros_like(x))


def _stacked(a: jax.Array, b: jax.Array) -> list[jax.Array]:
  """Channels and extra channels as the rows of one matrix, if the systolic array takes them in one pass."""
  return [jnp.concatenate([a, b], 0)] if a.shape[0] + b.shape[0] <= SYSTOLIC else [a, b]


def _logits(q, k, x, y) -> jax.Array:
  scaled = (q.astype(jnp.float32) * q.shape[0] ** -0.5).astype(q.dtype)
  first, *others = (_dot(keys, queries, 'rows') for keys, queries in zip(_stacked(k, y), _stacked(scaled, x)))
  return sum(others, first)


def _valid(shape: tuple[int, ...], axis: int, index, blocks: _Blocks) -> jax.Array:
  """Mask of the logits in a block that belong to real keys (axis 0) or queries (axis 1), not to padding."""
  return jax.lax.broadcasted_iota(jnp.int32, shape, axis) < blocks.length - index * blocks.size


def _forward_kernel(q_ref, k_ref, v_ref, x_ref, y_ref, out_ref, logsumexp_ref, maximum, total, acc, *, blocks):
  step, steps = pl.program_id(3), blocks.count

  @pl.when(step == 0)
  def _():
    maximum[...] = jnp.full_like(maximum, HIDDEN)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

  def add(ragged: bool):
    logits = _logits(_read(q_ref), _read(k_ref), _read(x_ref), _read(y_ref))
    if ragged:
      logits = jnp.where(_valid(logits.shape, 0, step, blocks), logits, HIDDEN)
    v = _read(v_ref, step, blocks if ragged else None)
    new = jnp.maximum(maximum[...], logits.max(0, keepdims=True))
    weights = jnp.exp(logits - new)
    rescale = jnp.exp(maximum[...] - new)
    maximum[...] = new
    total[...] = total[...] * rescale + weights.sum(0, keepdims=True)
    acc[...] = acc[...] * rescale + _dot(v, weights.astype(v.dtype), 'inner')

  _masked_at_edge(add, step == steps - 1, blocks)

  @pl.when(step == steps - 1)
  def _():
    out_ref[0, 0] = (acc[...] / total[...]).astype(out_ref.dtype)
    logsumexp_ref[0, 0] = maximum[...] + jnp.log(total[...])


def _backward_kernel(
  q_ref,
  k_ref,
  v_ref,
  x_ref,
  y_ref,
  out_ref,
  logsumexp_ref,
  dout_ref,
  dq_ref,
  dk_ref,
  dv_ref,
  dx_ref,
  dqx,
  dk,
  dv,
  delta,
  *,
  blocks,
):
  i, j, last = pl.program_id(2), pl.program_id(3), blocks.count - 1  # blocks of queries and of keys

  @pl.when(j == 0)
  def _():
    dqx[...] = jnp.zeros_like(dqx)
    delta[...] = (dout_ref[0, 0].astype(jnp.float32) * out_ref[0, 0].astype(jnp.float32)).sum(0, keepdims=True)

  @pl.when(i == 0)
  def _():
    dk[j] = jnp.zeros(dk.shape[1:], dk.dtype)
    dv[j] = jnp.zeros(dv.shape[1:], dv.dtype)

  def add(ragged: bool):
    edge = blocks if ragged else None
    q, x, dout = (_read(ref, i, edge) for ref in (q_ref, x_ref, dout_ref))
    k, v, y = (_read(ref, j, edge) for ref in (k_ref, v_ref, y_ref))
    weights = jnp.exp(_logits(q, k, x, y) - logsumexp_ref[0, 0])
    dlogits = weights * (_dot(v, dout, 'rows') - delta[...])
    if ragged:
      valid = _valid(weights.shape, 0, j, blocks) & _valid(weights.shape, 1, i, blocks)
      weights, dlogits = jnp.where(valid, weights, 0.0), jnp.where(valid, dlogits, 0.0)
    weights, dlogits = weights.astype(q.dtype), dlogits.astype(q.dtype)
    dv[j] += _dot(dout, weights, 'columns')
    dk[j] += _dot(q, dlogits, 'columns')
    row = 0
    for keys in _stacked(k, y):
      dqx[row : row + keys.shape[0]] += _dot(keys, dlogits, 'inner')
      row += keys.shape[0]

  _masked_at_edge(add, (i == last) | (j == last), blocks)
  width = q_ref.shape[2]
  scale = width**-0.5

  @pl.when(j == last)
  def _():
    dq_ref[0, 0] = (dqx[:width] * scale).astype(dq_ref.dtype)
    dx_ref[0, 0] = dqx[width:].astype(dx_ref.dtype)

  @pl.when(i == last)
  def _():
    dk_ref[0, 0] = (dk[j] * scale).astype(dk_ref.dtype)
    dv_ref[0, 0] = dv[j].astype(dv_ref.dtype)


def _masked_at_edge(add, at_edge, blocks: _Blocks):
  """Runs `add(ragged)`, where `ragged` says whether the block may pass the end; only such blocks pay for masking."""
  ragged = blocks.length % blocks.size != 0
  if not ragged or blocks.count == 1:
    add(ragged)
    return
  pl.when(jnp.logical_not(at_edge))(functools.partial(add, False))
  pl.when(at_edge)(functools.partial(add, True))


# -------------------------------------------------------------------------------------------------------------- calls


def _parameters(*semantics: Literal['parallel', 'arbitrary']) -> pltpu.CompilerParams:
  return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=VMEM_LIMIT)


def _cost(
  products: int, channel_products: int, q, x, blocks: _Blocks, rows: list[jax.Array], columns: list[jax.Array]
) -> pl.CostEstimate:
  """The cost estimate for XLA's scheduler: [N, N] products with D and R channels; each query block reads all keys."""
  batch, heads, width, length = q.shape
  pairs = batch * heads * length**2
  moved = sum(array.size * array.dtype.itemsize for array in rows + blocks.count * columns)
  return pl.CostEstimate(
    flops=2 * pairs * (products * width + channel_products * x.shape[2]), transcendentals=pairs, bytes_accessed=moved
  )


def _specs(x, size: int):
  """Block specs of per-query and per-key arrays, as functions of their rows, and of the keys' extra channels."""

  def of_queries(rows):
    return pl.BlockSpec((1, 1, rows, size), lambda b, h, i, j: (b, h, 0, i))

  def of_keys(rows):
    return pl.BlockSpec((1, 1, rows, size), lambda b, h, i, j: (b, h, 0, j))

  codes = pl.BlockSpec((1, 1, x.shape[2], size), lambda b, h, i, j: (0, 0, 0, j))
  return of_queries, of_keys, codes


def _forward(q, k, v, x, y):
  """Returns the output [B, H, D, N] and the logsumexp of the logits, f32 [B, H, 1, N]."""
  batch, heads, width, length = q.shape
  blocks = _blocks(length, q.dtype)
  size = blocks.size
  of_queries, of_keys, codes = _specs(x, size)
  return pl.pallas_call(
    functools.partial(_forward_kernel, blocks=blocks),
    grid=(batch, heads, blocks.count, blocks.count),
    in_specs=[of_queries(width), of_keys(width), of_keys(width), of_queries(x.shape[2]), codes],
    out_specs=[of_queries(width), of_queries(1)],
    out_shape=[jax.ShapeDtypeStruct(q.shape, q.dtype), jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)],
    scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in ((1, size), (1, size), (width, size))],
    compiler_params=_parameters('parallel', 'parallel', 'parallel', 'arbitrary'),
    cost_estimate=_cost(2, 1, q, x, blocks, [q, x, q], [k, v, y]),
    name='attention_forward',
  )(q, k, v, x, y)


def _backward(q, k, v, x, y, out, logsumexp, dout):
  """Returns the gradients of q, k, v and x in their own types."""
  batch, heads, width, length = q.shape
  blocks, channels = _blocks(length, q.dtype), x.shape[2]
  size, last = blocks.size, blocks.count - 1
  of_queries, of_keys, codes = _specs(x, size)
  # The keys' gradients are complete in the last pass over the keys; until then the output block stays in place.
  written = pl.BlockSpec((1, 1, width, size), lambda b, h, i, j: (b, h, 0, jnp.where(i == last, j, 0)))
  return pl.pallas_call(
    functools.partial(_backward_kernel, blocks=blocks),
    grid=(batch, heads, blocks.count, blocks.count),
    in_specs=[
      of_queries(width),
      of_keys(width),
      of_keys(width),
      of_queries(channels),
      codes,
      of_queries(width),
      of_queries(1),
      of_queries(width),
    ],
    out_specs=[of_queries(width), written, written, of_queries(channels)],
    out_shape=[jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (q, k, v, x)],
    scratch_shapes=[
      pltpu.VMEM(shape, jnp.float32)
      for shape in (
        (width + channels, size),
        (blocks.count, width, size),
        (blocks.count, width, size),
        (1, size),
      )
    ],
    compiler_params=_parameters('parallel', 'parallel', 'arbitrary', 'arbitrary'),
    cost_estimate=_cost(5, 2, q, x, blocks, [q, x, out, dout, q, k, v, x], [k, v, y]),
    name='attention_backward',
  )(q, k, v, x, y, out, logsumexp, dout)
