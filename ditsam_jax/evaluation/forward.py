"""A model as a function of an evaluation batch: on all devices of this host, images encoded once where they can be.

The compiled programs always get ROWS_AT_ONCE rows and IMAGES_AT_ONCE images on one device, whatever the batch size and
the number of devices: XLA rounds differently for every shape, and a pixel in a million lies close enough to the
threshold to be moved by that.
"""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ditsam_jax.data.pipeline import Batch
from ditsam_jax.models.ditsam import DitSam

Forward = Callable[[Batch], jax.Array]

ROWS_AT_ONCE = 8
IMAGES_AT_ONCE = 4

_TEXT = ('token_ids', 'token_mask')


def forward_of(model: DitSam, *, share_images: bool = True) -> Forward:
  """The model as a jitted function of a batch: logits f32 [B, S, S]; always in evaluation mode.

  The devices of this host share the rows. Models of the same structure share what is compiled, so weights may change
  between evaluations. Where the sentence does not enter the image encoder (fusion 'none'), rows of the same
  'image_index' share one image embedding; `share_images=False` encodes the image of every row, as all other fusions
  must.
  """
  kind = _SharedImages if share_images and model.config.fusion == 'none' else _RowByRow
  devices = jax.local_devices()
  programs = [kind(model, device) for device in devices]

  def forward(batch: Batch) -> jax.Array:
    rows = len(batch['image'])
    share = -(-rows // (len(devices) * ROWS_AT_ONCE)) * ROWS_AT_ONCE
    parts = ({name: array[start : start + share] for name, array in batch.items()} for start in range(0, rows, share))
    # Nothing waits for a result, so the devices work at the same time.
    pieces = [piece for program, part in zip(programs, parts) for piece in program(part)]
    return jnp.concatenate([jax.device_put(piece, devices[0]) for piece in pieces])[:rows]

  return forward


def _split(model: DitSam, device: jax.Device):
  graph, state = nnx.split(model)
  return graph, jax.device_put(state, device)


def _merged(graph, state) -> DitSam:
  model = nnx.merge(graph, state)
  model.eval()
  return model


def _filled(array: np.ndarray, size: int) -> np.ndarray:
  """`size` rows: those of an array, then its last one again and again."""
  return array if len(array) == size else np.concatenate([array, np.repeat(array[-1:], size - len(array), axis=0)])


class _RowByRow:
  """Rows of a batch on one device, each with its own image."""

  def __init__(self, model: DitSam, device: jax.Device):
    self._device = device
    self._graph, self._state = _split(model, device)

  def __call__(self, batch: Batch) -> Iterator[jax.Array]:
    for start in range(0, len(batch['image']), ROWS_AT_ONCE):
      rows = [_filled(batch[name][start : start + ROWS_AT_ONCE], ROWS_AT_ONCE) for name in ('image', *_TEXT)]
      yield _logits(self._graph, self._state, *jax.device_put(rows, self._device))


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, images: jax.Array, token_ids: jax.Array, token_mask: jax.Array) -> jax.Array:
  return _merged(graph, state)(images, token_ids, token_mask).logits


class _SharedImages:
  """Rows of a batch on one device; each image is encoded once, and every row decoded from its embedding.

  Embeddings lie in a buffer of fixed size, so that two programs do whatever the number of images. Its first slot keeps
  the last image, which the next batch often begins with.
  """

  def __init__(self, model: DitSam, device: jax.Device):
    self._device = device
    self._graph, self._state = _split(model, device)
    grid = model.config.image_size // model.config.image_encoder.patch_size
    self._embedding_shape = (grid, grid, model.config.mask_decoder.width)
    self._type = model.image_encoder.pos_embed.dtype
    self._embeddings: jax.Array | None = None
    self._kept: np.ndarray | None = None  # the pixels of the image in the first slot

  def __call__(self, batch: Batch) -> Iterator[jax.Array]:
    images = batch['image']
    is_new = np.append(True, np.diff(batch['image_index']) != 0)
    firsts, slots = np.flatnonzero(is_new), np.cumsum(is_new).astype(np.int32)
    buffer, self._embeddings = self._buffer(len(images)), None  # it is given away to the programs below
    # By the pixels: the same index means another image in another split.
    if self._kept is not None and np.array_equal(images[0], self._kept):
      firsts, slots = firsts[1:], slots - 1
    for start in range(0, len(firsts), IMAGES_AT_ONCE):
      some = _filled(firsts[start : start + IMAGES_AT_ONCE], IMAGES_AT_ONCE)  # the filling's slots are read by no row
      pixels = jax.device_put(images[some], self._device)
      buffer = _encoded(self._graph, buffer, self._state, pixels, 1 + start)
    for start in range(0, len(images), ROWS_AT_ONCE):
      rows = [_filled(array[start : start + ROWS_AT_ONCE], ROWS_AT_ONCE) for array in (slots, *map(batch.get, _TEXT))]
      yield _decoded(self._graph, images.shape[1:3], self._state, buffer, *jax.device_put(rows, self._device))
    self._embeddings, self._kept = _kept_first(buffer, slots[-1]), images[-1].copy()

  def _buffer(self, rows: int) -> jax.Array:
    size = 1 + -(-rows // IMAGES_AT_ONCE) * IMAGES_AT_ONCE
    if self._embeddings is None or len(self._embeddings) != size:
      self._kept = None
      self._embeddings = jax.device_put(np.zeros((size, *self._embedding_shape), self._type), self._device)
    return self._embeddings


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def _encoded(graph, buffer: jax.Array, state, images: jax.Array, slot: int) -> jax.Array:
  """The buffer with the embeddings of images from a slot on."""
  embeddings = _merged(graph, state).image_encoder(images)
  return jax.lax.dynamic_update_slice_in_dim(buffer, embeddings.astype(buffer.dtype), slot, axis=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _decoded(
  graph, image_size, state, buffer: jax.Array, slots: jax.Array, token_ids: jax.Array, token_mask: jax.Array
) -> jax.Array:
  """Logits [R, S, S] of rows whose image embeddings lie in slots of the buffer."""
  model = _merged(graph, state)
  text = model.text_encoder(token_ids, token_mask)
  return model.decode(buffer[slots], [model.text_proj(text)], None, image_size, text=text).logits


@functools.partial(jax.jit, donate_argnums=0)
def _kept_first(buffer: jax.Array, slot: int) -> jax.Array:
  return buffer.at[0].set(buffer[slot])
