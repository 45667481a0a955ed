"""A model as a function of an evaluation batch: on all devices of this host, images encoded once where they can be."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ditsam_jax.data.pipeline import Batch
from ditsam_jax.models.ditsam import DitSam

Forward = Callable[[Batch], jax.Array]

# Few, because the last images of a batch are filled up to so many; enough to keep a device busy.
IMAGES_AT_ONCE = 4


def forward_of(model: DitSam, *, share_images: bool = True) -> Forward:
  """The model as a jitted function of a batch: logits f32 [B, S, S]; always in evaluation mode.

  The rows of a batch are dealt out to the devices of this host, which must divide their number. Models of the
  same structure share what is compiled, so weights may change between evaluations. Where the sentence does not
  enter the image encoder (fusion 'none'), rows of the same 'image_index' share one image embedding;
  `share_images=False` encodes the image of every row, as all other fusions must.
  """
  mesh = Mesh(np.asarray(jax.local_devices()), ('rows',))
  everywhere, by_row = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec('rows'))
  graph, state = nnx.split(model)
  state = jax.device_put(jax.tree.map(_on_this_host, state), everywhere)
  if share_images and model.config.fusion == 'none':
    return _SharedImages(model, graph, state, everywhere, by_row)

  def forward(batch: Batch) -> jax.Array:
    return _logits(graph, state, *jax.device_put((batch['image'], batch['token_ids'], batch['token_mask']), by_row))
  return forward


def _on_this_host(array: jax.Array) -> jax.Array:
  # Weights replicated over the devices of all hosts; one evaluates its own rows alone.
  return array if array.is_fully_addressable else array.addressable_data(0)


@functools.partial(jax.jit, static_argnums=0)
def _logits(graph, state, images: jax.Array, token_ids: jax.Array, token_mask: jax.Array) -> jax.Array:
  return _merged(graph, state)(images, token_ids, token_mask).logits


def _merged(graph, state) -> DitSam:
  model = nnx.merge(graph, state)
  model.eval()
  return model


class _SharedImages:
  """Encodes each image of a batch once, IMAGES_AT_ONCE at a time, and decodes every row from its embedding.

  Embeddings lie in a buffer of fixed size, so that two programs do whatever the number of images. Its first
  slot keeps the last image, which the next batch often begins with.
  """

  def __init__(self, model: DitSam, graph, state, everywhere: NamedSharding, by_row: NamedSharding):
    self._graph, self._state, self._everywhere, self._by_row = graph, state, everywhere, by_row
    devices = everywhere.mesh.size
    self._at_once = -(-IMAGES_AT_ONCE // devices) * devices
    grid = model.config.image_size // model.config.image_encoder.patch_size
    self._embedding_shape = (grid, grid, model.config.mask_decoder.width)
    self._type = model.image_encoder.pos_embed.dtype
    self._embeddings: jax.Array | None = None
    self._kept: np.ndarray | None = None  # the pixels of the image in the first slot

  def __call__(self, batch: Batch) -> jax.Array:
    images, rows = batch['image'], len(batch['image'])
    is_new = np.append(True, np.diff(batch['image_index']) != 0)
    firsts, slots = np.flatnonzero(is_new), np.cumsum(is_new)
    buffer, self._embeddings = self._buffer(rows), None  # it is given away to the programs below
    # By the pixels: the same index means another image in another split.
    if self._kept is not None and np.array_equal(images[0], self._kept):
      firsts, slots = firsts[1:], slots - 1
    for start in range(0, len(firsts), self._at_once):
      some = firsts[start:start + self._at_once]
      chosen = np.full(self._at_once, some[-1])  # filled up into slots that no row reads
      chosen[:len(some)] = some
      pixels = jax.device_put(images[chosen], self._by_row)
      buffer = _encoded(self._graph, self._everywhere, buffer, self._state, pixels, 1 + start)
    inputs = jax.device_put((slots.astype(np.int32), batch['token_ids'], batch['token_mask']), self._by_row)
    logits, self._embeddings = _decoded(
      self._graph, self._everywhere, images.shape[1:3], buffer, self._state, *inputs, slots[-1])
    self._kept = images[-1].copy()
    return logits

  def _buffer(self, rows: int) -> jax.Array:
    size = 1 + -(-rows // self._at_once) * self._at_once
    if self._embeddings is None or len(self._embeddings) != size:
      self._kept = None
      self._embeddings = jax.device_put(np.zeros((size, *self._embedding_shape), self._type), self._everywhere)
    return self._embeddings


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _encoded(graph, everywhere, buffer: jax.Array, state, images: jax.Array, slot: int) -> jax.Array:
  """The buffer with the embeddings of images from a slot on."""
  embeddings = _merged(graph, state).image_encoder(images)
  buffer = jax.lax.dynamic_update_slice_in_dim(buffer, embeddings.astype(buffer.dtype), slot, axis=0)
  return jax.lax.with_sharding_constraint(buffer, everywhere)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _decoded(graph, everywhere, image_size, buffer: jax.Array, state, slots: jax.Array, token_ids: jax.Array,
             token_mask: jax.Array, last: int) -> tuple[jax.Array, jax.Array]:
  """Logits [B, S, S] of rows whose image embeddings lie in slots, and the buffer with slot `last` in the first."""
  model = _merged(graph, state)
  text = model.text_encoder(token_ids, token_mask)
  logits = model.decode(buffer[slots], [model.text_proj(text)], None, image_size, text=text).logits
  return logits, jax.lax.with_sharding_constraint(buffer.at[0].set(buffer[last]), everywhere)
