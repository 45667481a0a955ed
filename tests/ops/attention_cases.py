"""Inputs for attention, and how to call every implementation that can be emulated on a CPU."""

import contextlib
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from ditsam_jax.ops.attention import attention, cudnn, relative_terms

NAMES = ('reference', 'xla', 'pallas_tpu', 'pallas_gpu', 'cudnn')


class Case(NamedTuple):
  """The shapes of a call."""

  grid: tuple[int, int]
  prefix: int = 0
  width: int = 8
  batch: int = 1
  heads: int = 2

  @property
  def length(self) -> int:
    return self.prefix + self.grid[0] * self.grid[1]

  def arrays(self, dtype='float32', size: float = 1.0) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns [q, k, v and both tables] and the gradient of the output; `size` scales q."""
    rng = np.random.default_rng(self.length)
    q, k, v, probe = rng.normal(size=(4, self.batch, self.heads, self.length, self.width))
    tables = [rng.normal(size=(2 * side - 1, self.width)) / self.width**0.5 for side in self.grid]
    arrays = [np.asarray(x, jnp.dtype(dtype)) for x in (size * q, k, v, *tables, probe)]
    return arrays[:-1], arrays[-1]


@contextlib.contextmanager
def on_cpu(name: str, interpret: bool | pltpu.InterpretParams = True):
  """Interprets Pallas kernels, and replaces cuDNN by a plain attention of the same signature."""
  with contextlib.ExitStack() as stack:
    if name.startswith('pallas'):
      stack.enter_context(pltpu.force_tpu_interpret_mode(interpret))
    if name == 'cudnn':
      stack.enter_context(mock.patch.object(jax.nn, 'dot_product_attention', _plain))
      stack.enter_context(mock.patch.object(cudnn, 'compute_capability', lambda: (9, 0)))
    yield


def value_and_gradients(
  name: str, case: Case, arrays, probe, interpret: bool | pltpu.InterpretParams = True
) -> list[np.ndarray]:
  """Returns the output and the gradients of q, k, v and both tables."""

  def forward(q, k, v, table_h, table_w):
    terms = relative_terms(q, table_h, table_w, case.grid, case.prefix)
    return attention(q, k, v, *terms, grid=case.grid, prefix=case.prefix, implementation=name)

  def both(arrays, probe):
    out, backward = jax.vjp(forward, *arrays)
    return out, *backward(probe)

  with on_cpu(name, interpret):
    return [np.asarray(x, np.float64) for x in jax.jit(both)(arrays, probe)]


def exactly(case: Case, arrays, probe) -> list[np.ndarray]:
  """The same in float64 NumPy, with gradients derived by hand."""
  q, k, v, table_h, table_w, probe = (np.asarray(x, np.float64) for x in (*arrays, probe))
  (h, w), prefix, scale = case.grid, case.prefix, case.width**-0.5
  image = q[:, :, prefix:].reshape(*q.shape[:2], h, w, case.width)
  rows, columns = (np.arange(side)[:, None] - np.arange(side) + side - 1 for side in (h, w))  # table indices
  bias = (
    np.einsum('bnhwd,hkd->bnhwk', image, table_h[rows])[..., :, None]
    + np.einsum('bnhwd,wkd->bnhwk', image, table_w[columns])[..., None, :]
  )
  logits = scale * q @ k.swapaxes(-1, -2)
  logits[:, :, prefix:, prefix:] += bias.reshape(*q.shape[:2], h * w, h * w)
  weights = np.exp(logits - logits.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  dweights = probe @ v.swapaxes(-1, -2)
  dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
  dbias = dlogits[:, :, prefix:, prefix:].reshape(*q.shape[:2], h, w, h, w)
  dq = scale * dlogits @ k
  dimage = np.einsum('bnhwk,hkd->bnhwd', dbias.sum(-1), table_h[rows]) + np.einsum(
    'bnhwk,wkd->bnhwd', dbias.sum(-2), table_w[columns]
  )
  dq[:, :, prefix:] += dimage.reshape(*q.shape[:2], h * w, case.width)
  dtable_h, dtable_w = np.zeros_like(table_h), np.zeros_like(table_w)
  np.add.at(dtable_h, rows, np.einsum('bnhwk,bnhwd->hkd', dbias.sum(-1), image))
  np.add.at(dtable_w, columns, np.einsum('bnhwk,bnhwd->wkd', dbias.sum(-2), image))
  return [weights @ v, dq, scale * dlogits.swapaxes(-1, -2) @ q, weights.swapaxes(-1, -2) @ probe, dtable_h, dtable_w]


def _plain(q, k, v, *, scale: float, implementation: str, query_seq_lengths=None, key_value_seq_lengths=None):
  """Computes `jax.nn.dot_product_attention` in f32 and checks cuDNN's requirements."""
  assert implementation == 'cudnn' and q.shape == k.shape == v.shape
  assert q.shape[1] % 2 == 0 and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256
  logits = scale * jnp.einsum('bnhd,bmhd->bhnm', q.astype(jnp.float32), k.astype(jnp.float32))
  if key_value_seq_lengths is not None:
    valid = jnp.arange(q.shape[1]) < key_value_seq_lengths[:, None, None, None]
    logits = jnp.where(valid, logits, -jnp.inf)
  return jnp.einsum('bhnm,bmhd->bnhd', jax.nn.softmax(logits), v.astype(jnp.float32)).astype(q.dtype)
