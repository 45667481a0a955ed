"""Resizing with PyTorch's conventions, as products with small dense matrices.

Interpolation is linear in its input, so resizing an axis is a product with a constant [new, old] matrix. Matrix
products are fast on every accelerator, and their gradients match PyTorch's `torch.nn.functional.interpolate`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

CUBIC_A = -0.75  # PyTorch's bicubic coefficient; jax.image uses -0.5


def _cubic(x: np.ndarray) -> np.ndarray:
  """Keys' cubic kernel with a = -0.75 at distance x."""
  x = np.abs(x)
  near = ((CUBIC_A + 2) * x - (CUBIC_A + 3)) * x * x + 1
  far = ((CUBIC_A * x - 5 * CUBIC_A) * x + 8 * CUBIC_A) * x - 4 * CUBIC_A
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _linear(x: np.ndarray) -> np.ndarray:
  return np.maximum(0.0, 1.0 - np.abs(x))


@functools.lru_cache(maxsize=256)
def resize_matrix(old: int, new: int, method: str, align_corners: bool = False) -> np.ndarray:
  """Returns the weights, f32 [new, old], that resize an axis like PyTorch's `interpolate` without antialiasing.

  Args:
    old: current length of the axis.
    new: target length.
    method: 'linear' or 'cubic'.
    align_corners: aligns the centres of the corner pixels; otherwise uses half-pixel centres.
  """
  target = np.arange(new, dtype=np.float64)
  if align_corners:
    source = target * ((old - 1) / (new - 1) if new > 1 else 0.0)
  else:
    source = (target + 0.5) * (old / new) - 0.5
    if method == 'linear':
      source = np.maximum(source, 0.0)  # torch clamps for linear, not for cubic
  kernel, reach = {'linear': (_linear, 1), 'cubic': (_cubic, 2)}[method]
  first = np.floor(source).astype(int)
  weights = np.zeros((new, old))
  for tap in range(1 - reach, reach + 1):
    at = first + tap
    np.add.at(weights, (np.arange(new), np.clip(at, 0, old - 1)), kernel(source - at))
  return weights.astype(np.float32)


def resize_rows(x: jax.Array, new: int, method: str = 'linear') -> jax.Array:
  """Resizes the first axis of x [old, ...] to `new`, with half-pixel centres."""
  if x.shape[0] == new:
    return x
  return jnp.tensordot(jnp.asarray(resize_matrix(x.shape[0], new, method), x.dtype), x, axes=1)


def resize_grid(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes x [H, W, C] cubically to [size[0], size[1], C], with half-pixel centres and without antialiasing."""
  x = resize_rows(x, size[0], 'cubic')
  return resize_rows(x.swapaxes(0, 1), size[1], 'cubic').swapaxes(0, 1)


def resize_masks(x: jax.Array, size: tuple[int, int], align_corners: bool) -> jax.Array:
  """Resizes x [..., h, w] bilinearly to [..., size[0], size[1]]. DIT's output step aligns corners; SAM's does not."""
  rows = jnp.asarray(resize_matrix(x.shape[-2], size[0], 'linear', align_corners), x.dtype)
  columns = jnp.asarray(resize_matrix(x.shape[-1], size[1], 'linear', align_corners), x.dtype)
  return jnp.einsum('yh,...hw,xw->...yx', rows, x, columns, optimize=True)
