"""Layers shared by the encoders and the decoder."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

# Names of values, for rematerialisation.
HIDDEN = 'hidden'  # of an MLP, before the activation
STATISTICS = 'statistics'  # a norm's mean and inverse deviation of each row, f32


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
  """Exact GELU of x [...] in PyTorch's form; on CPUs twice as fast as jax.nn.gelu, which uses erfc.

  The backward pass keeps x alone, in its own type; JAX's derivative keeps three f32 arrays.
  """
  wide = at_least_f32(x)
  return (0.5 * wide * (1 + jax.lax.erf(wide * 0.5**0.5))).astype(x.dtype)


def _gelu_forward(x):
  return gelu(x), x


def _gelu_backward(x, gradient):
  wide = at_least_f32(x)
  density = jnp.exp(-0.5 * jnp.square(wide)) * (0.5 / math.pi) ** 0.5
  slope = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5)) + wide * density
  return ((at_least_f32(gradient) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


class _CountingStream(nnx.RngStream):
  """An RngStream with the same keys that counts in Python."""

  def __init__(self, stream: nnx.RngStream):
    self.tag, self.key, self.count = stream.tag, stream.key, stream.count
    self.drawn = 0

  def __call__(self) -> jax.Array:
    key = jax.random.fold_in(self.key[...], self.count[...] + np.uint32(self.drawn))
    self.drawn += 1
    return key

  def fork(self, **unused) -> nnx.RngStream:
    return nnx.RngStream(self(), tag=self.tag)


@contextlib.contextmanager
def quick_draws(rngs: nnx.Rngs) -> Iterator[nnx.Rngs]:
  """Yields the same keys as `rngs` while a model is built; drawing from a traced stream takes quadratic time.

  (Setting an NNX variable asks a tracer for its sharding, and the resulting error message prints the whole program.)
  """
  quick = nnx.Rngs(**dict(rngs.items()))
  streams = {name: _CountingStream(stream) for name, stream in rngs.items()}
  for name, stream in streams.items():
    setattr(quick, name, stream)
  yield quick
  for name, stream in streams.items():
    rngs[name].count[...] += np.uint32(stream.drawn)


def at_least_f32(x: jax.Array) -> jax.Array:
  """Converts x [...] to f32 if it is narrower."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


class Linear(nnx.Linear):
  """nnx.Linear on [rows, channels], because XLA's CPU matmuls are faster on two axes than on three.

  On TPUs (`tiled`), where such a reshape is a copy, on x as it is.
  """

  def __call__(self, x: jax.Array, tiled: bool = False) -> jax.Array:  # x: [..., in_features]
    if tiled:
      return super().__call__(x)
    return super().__call__(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
  """LayerNorm over the last axis, [..., C]; also SAM's LayerNorm2d, because our images are NHWC.

  Uses a two-pass variance, like PyTorch, and computes the statistics of bf16 in f32. On CPUs 2 to 3 times faster than
  nnx.LayerNorm, which writes broadcasts to memory.
  """

  def __init__(self, width: int, epsilon: float):
    self.epsilon = epsilon
    self.scale = nnx.Param(jnp.ones(width))
    self.bias = nnx.Param(jnp.zeros(width))

  def __call__(self, x: jax.Array) -> jax.Array:
    normed: Any = _layer_norm(x, self.scale[...], self.bias[...], self.epsilon)  # custom_vjp hides the type
    return normed


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x, scale, bias, epsilon) -> jax.Array:
  return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
  wide = at_least_f32(x)
  mean = checkpoint_name(wide.mean(-1, keepdims=True), STATISTICS)
  centred = wide - mean
  inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + epsilon)
  inverse = checkpoint_name(inverse, STATISTICS)
  out = centred * inverse * at_least_f32(scale) + at_least_f32(bias)
  return out.astype(x.dtype), (x, mean, inverse, scale, bias)


def _layer_norm_backward(epsilon, residuals, gradient):
  """Seven times faster on CPUs than JAX's derivative, in which sums of products over the last axis are slow.

  It keeps x in its own type, and two numbers a row.
  """
  del epsilon
  x, mean, inverse, scale, bias = residuals
  normed, gradient = (at_least_f32(x) - mean) * inverse, at_least_f32(gradient)
  rows = tuple(range(gradient.ndim - 1))
  scaled = gradient * at_least_f32(scale)
  along = jnp.einsum('...c,...c->...', scaled, normed, precision='highest')[..., None] / scale.size
  dx = (scaled - scaled.mean(-1, keepdims=True) - normed * along) * inverse
  dscale, dbias = (gradient * normed).sum(rows), gradient.sum(rows)
  return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class MlpBlock(nnx.Module):
  """Two linear layers, [..., C] -> [..., C]."""

  def __init__(self, width: int, hidden: int, activation: Callable[[jax.Array], jax.Array], *, rngs: nnx.Rngs):
    self.activation = activation
    self.lin1 = Linear(width, hidden, rngs=rngs)
    self.lin2 = Linear(hidden, width, rngs=rngs)

  def __call__(self, x: jax.Array, tiled: bool = False) -> jax.Array:  # for `tiled` see Linear
    return self.lin2(self.activation(checkpoint_name(self.lin1(x, tiled), HIDDEN)), tiled)


class PatchConv(nnx.Module):
  """Convolution whose stride equals its kernel size, as one product: [B, H, W, Cin] -> [B, H/p, W/p, Cout]."""

  def __init__(self, size: int, in_features: int, out_features: int, *, rngs: nnx.Rngs):
    self.size = size
    initial = nnx.initializers.lecun_normal(in_axis=(0, 1, 2))
    self.kernel = nnx.Param(initial(rngs.params(), (size, size, in_features, out_features)))
    self.bias = nnx.Param(jnp.zeros(out_features))

  def __call__(self, x: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    p = self.size
    h, w = height // p, width // p
    x = x.reshape(batch, h, p, w, p, channels).transpose(0, 1, 3, 2, 4, 5).reshape(-1, p * p * channels)
    kernel = self.kernel[...]
    x = x @ kernel.reshape(-1, kernel.shape[-1]) + self.bias[...]
    return x.reshape(batch, h, w, -1)


class UpConv2(nnx.Module):
  """PyTorch's ConvTranspose2d(kernel 2, stride 2), [..., Cin] -> [..., 2, 2, Cout]: each pixel becomes 2 x 2.

  The two new axes stay at the end, so that pointwise layers that follow need no transpose; the caller rearranges the
  pixels once, at the end.
  """

  def __init__(self, in_features: int, out_features: int, *, rngs: nnx.Rngs):
    initial = nnx.initializers.lecun_normal(in_axis=0, out_axis=3)
    self.kernel = nnx.Param(initial(rngs.params(), (in_features, 2, 2, out_features)))
    self.bias = nnx.Param(jnp.zeros(out_features))

  def __call__(self, x: jax.Array) -> jax.Array:
    kernel = self.kernel[...]
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[0], -1)
    return y.reshape(*x.shape[:-1], *kernel.shape[1:]) + self.bias[...]


class Mlp(nnx.Module):
  """SAM's small MLP head: `depth` linear layers with ReLU in between, [..., in] -> [..., out]."""

  def __init__(self, in_features: int, hidden: int, out_features: int, depth: int, *, rngs: nnx.Rngs):
    widths = [in_features] + [hidden] * (depth - 1) + [out_features]
    self.layers = nnx.List(Linear(a, b, rngs=rngs) for a, b in zip(widths, widths[1:]))

  def __call__(self, x: jax.Array) -> jax.Array:
    for layer in self.layers[:-1]:
      x = jax.nn.relu(layer(x))
    return self.layers[-1](x)


@jax.custom_vjp
def to_heads(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> tuple[jax.Array, ...]:
  """Linear layers by head, with the tokens last: x [B, N, C], kernel [C, S, H, D], bias [S, H, D] -> S [B, H, D, N].

  One product for each of the S results, which a TPU writes in this layout. The gradient of x is summed in f32.
  """
  return tuple(
    jnp.einsum('bnc,chd->bhdn', x, kernel[:, i]) + bias[i][..., None].astype(x.dtype) for i in range(kernel.shape[1])
  )


def _to_heads_forward(x, kernel, bias):
  return to_heads(x, kernel, bias), (x, kernel, bias)


def _to_heads_backward(residuals, gradients):
  x, kernel, bias = residuals
  parts = [
    jnp.einsum('bhdn,chd->bnc', gradient, kernel[:, i], preferred_element_type=jnp.promote_types(x.dtype, jnp.float32))
    for i, gradient in enumerate(gradients)
  ]
  of_kernel = [jnp.einsum('bnc,bhdn->chd', x, gradient) for gradient in gradients]
  of_bias = [gradient.sum((0, 3)) for gradient in gradients]
  return (
    sum(parts[1:], parts[0]).astype(x.dtype),
    jnp.stack(of_kernel, 1).astype(kernel.dtype),
    jnp.stack(of_bias).astype(bias.dtype),
  )


to_heads.defvjp(_to_heads_forward, _to_heads_backward)


def split_heads(x: jax.Array, heads: int) -> jax.Array:
  """[B, N, C] -> [B, H, N, C/H]."""
  return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def merge_heads(x: jax.Array) -> jax.Array:
  """[B, H, N, D] -> [B, N, H*D]."""
  return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def dot_product_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  bias: jax.Array | None = None,
  drop: Callable[[jax.Array], jax.Array] | None = None,
) -> jax.Array:
  """Plain attention on [B, H, N, D], with `bias` added to the logits and `drop` applied to the probabilities."""
  logits = at_least_f32((q * q.shape[-1] ** -0.5) @ k.swapaxes(-1, -2))
  if bias is not None:
    logits = logits + bias
  probabilities = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
  return (drop(probabilities) if drop else probabilities) @ v


def linear_flops(rows: int, *widths: int) -> int:
  """FLOPs of consecutive linear layers, two per multiply-add."""
  return sum(2 * rows * a * b for a, b in zip(widths, widths[1:]))


def attention_flops(queries: int, keys: int, width: int) -> int:
  """FLOPs of the logits and of the products with the values, over all heads."""
  return 4 * queries * keys * width
