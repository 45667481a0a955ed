"""The inference engine: computes logits of rows, each an image and a prompt, on all devices of this host.

Rows run in batches of a fixed size; the last batch is padded, so each program compiles once for a single row and once
for a batch. Work that rows share is done once: each sentence is read once and each image encoded once (once per
sentence if sentences enter the image encoder).

XLA's rounding depends on a program's shape, but not on the other rows of a batch. With the same `at_once`, and without
`one_image`, a row's logits are bit-identical whatever rows accompany it and however many devices there are.
"""

import collections
import dataclasses
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.inference import programs
from ditsam_jax.inference.programs import Device
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.weights import Weights, cast_array, dtype_named

_SENTENCES_KEPT = 256  # per device; 60 kB each with BERT base
EMBEDDINGS_KEPT = 8  # per image, with different sentences; 1 MB each at 512 x 512


class Square:
  """An image in the model's square, f32 [S, S, 3], with a cache of its embeddings.

  The cache's key is the sentence encoded with the image, or None for the image alone.
  """

  def __init__(self, pixels: np.ndarray):
    self.pixels = pixels
    self._embeddings: dict[Hashable, dict[Device, jax.Array]] = {}

  def known(self, sentence: Hashable, device: Device) -> jax.Array | None:
    """Returns a cached embedding, copied from another device if need be, or None."""
    copies = self._embeddings.get(sentence, {})
    if copies and device not in copies:
      copies[device] = jax.device_put(next(iter(copies.values())), device)
    return copies.get(device)

  def keep(self, sentence: Hashable, device: Device, embedding: jax.Array) -> None:
    """Caches an embedding. Old embeddings with sentences are evicted; that of the image alone stays."""
    self._embeddings[sentence] = {device: embedding}
    with_sentence = [key for key in list(self._embeddings) if key is not None]
    for key in with_sentence[:-EMBEDDINGS_KEPT]:
      self._embeddings.pop(key, None)


class Sentence(NamedTuple):
  """Token ids and 0/1 token mask, int32 [T] each."""

  token_ids: np.ndarray
  token_mask: np.ndarray

  @property
  def key(self) -> Hashable:
    return self.token_ids.tobytes(), self.token_mask.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """An image and a prompt.

  Attributes:
    square: the image.
    sentence: the text prompt, or None.
    points: (x, y) in pixels of the square, f32 [P, 2], and labels i32 [P], see `prompts.point_tokens`; or None.
    mask: the mask prompt, f32 [S/4, S/4], or None.
    multimask: predict three masks instead of one.
  """

  square: Square
  sentence: Sentence | None = None
  points: tuple[np.ndarray, np.ndarray] | None = None
  mask: np.ndarray | None = None
  multimask: bool = False

  @property
  def kind(self) -> tuple:
    """Rows of the same kind can be batched."""
    tokens = 0 if self.points is None else len(self.points[0])
    return self.sentence is not None, tokens, self.mask is not None, self.multimask


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
  """The output of one batch, computed asynchronously: only reading an array waits for it.

  Attributes:
    rows: indices of the rows in the request; further entries in the arrays are padding.
    logits: f32 [R, M, S/4, S/4], or [R, M, S, S] at the resolution of the square.
    iou: predicted IoU, f32 [R, M].
  """

  rows: list[int]
  logits: jax.Array
  iou: jax.Array


class Engine:
  """A model on the devices of this host."""

  def __init__(self, model: DitSam, dtype: str | None = 'auto'):
    """Copies the model's current weights; later changes to the model have no effect.

    Args:
      model: a model in train or eval mode; it always runs without dropout.
      dtype: compute type, one of `weights.DTYPES`; None uses that of the weights, as does 'auto' if it is not f32.

    Raises:
      UserError: the type is unknown.
    """
    self.config = model.config
    self.devices = jax.local_devices()
    parts = programs.parts_of(model)
    stored = next(iter(parts.encoder[1].values())).dtype
    narrow = dtype == 'auto' and stored != jnp.float32  # chosen deliberately when the model was saved
    chosen = stored if dtype is None or narrow else dtype_named(dtype, self.devices[0].platform)
    self.dtype = chosen.name
    self.parts = parts.mapped(lambda weights: _cast(weights, chosen))
    self._lock = threading.Lock()
    self._replicas: dict[Device, _Replica] = {}

  def run(self, rows: Sequence[Row], at_once: int, *, one_image: bool = False, squares: bool = False) -> list[Piece]:
    """Starts computing rows; each device takes a contiguous range.

    Args:
      rows: rows in any order; keep rows of the same image together for speed.
      at_once: batch size of the programs.
      one_image: decode all prompts of an image from a single embedding. Saves work, but rounds differently.
      squares: return logits at the resolution of the model's square.
    """
    share = -(-len(rows) // (len(self.devices) * at_once)) * at_once
    pieces = []
    for device, start in zip(self.devices, range(0, len(rows), max(share, 1))):
      places = range(start, min(start + share, len(rows)))
      pieces += self._replica(device).run(rows, places, at_once, one_image, squares)
    return pieces

  def embedding(self, square: Square) -> jax.Array:
    """Returns the embedding [h, w, C] of an image without a sentence, from the cache if possible."""
    return self._replica(self.devices[0]).embeddings([Row(square)], 1)[0]

  def encode(self, squares: Sequence[Square], at_once: int, sentence: Sentence | None = None) -> None:
    """Starts to encode images that are not known yet, `at_once` in a program, on all devices; later rows find them."""
    share = -(-len(squares) // (len(self.devices) * at_once)) * at_once
    for device, start in zip(self.devices, range(0, len(squares), max(share, 1))):
      self._replica(device).encode([Row(square, sentence) for square in squares[start : start + share]], at_once)

  def _replica(self, device: Device) -> '_Replica':
    with self._lock:
      if device not in self._replicas:  # created lazily: unused devices hold no weights
        self._replicas[device] = _Replica(self.parts, self.config.encodes_text_with_image, device)
      return self._replicas[device]


class _Replica:
  """The model on one device."""

  def __init__(self, parts: programs.Parts, fused: bool, device: Device):
    self._parts = parts.mapped(lambda weights: jax.device_put(weights, device))
    self._fused, self._device = fused, device
    self._lock = threading.Lock()
    self._sentences: collections.OrderedDict[Hashable, jax.Array] = collections.OrderedDict()

  def run(
    self, rows: Sequence[Row], places: Iterable[int], at_once: int, one_image: bool, squares: bool
  ) -> list[Piece]:
    """Computes the rows at `places`."""
    places = list(places)
    mine = [rows[place] for place in places]
    features = self._features(mine, at_once)
    embeddings = self.embeddings(mine, at_once, features)
    pieces = []
    for group, together in _groups(mine, embeddings if one_image else None):
      for start in range(0, len(group), at_once):
        some = group[start : start + at_once]
        padded = some + some[-1:] * (at_once - len(some))
        used = [embeddings[i] for i in (padded[:1] if together else padded)]
        outputs = self._decode([mine[i] for i in padded], used, [features[i] for i in padded], squares)
        pieces.append(Piece([places[i] for i in some], *outputs))
    return pieces

  def embeddings(
    self, rows: Sequence[Row], at_once: int, features: Sequence[jax.Array | None] | None = None
  ) -> list[jax.Array]:
    """Image embeddings of all rows, with the sentence if it enters the image encoder."""
    features = self._features(rows, at_once) if features is None else features
    if not self._fused:
      at_once = -(-at_once // 2)  # images of several prompts each, as a rule
    return self._encoded(rows, at_once, features)

  def encode(self, rows: Sequence[Row], at_once: int) -> None:
    """Starts to encode the images of rows, `at_once` in a program."""
    self._encoded(rows, at_once, self._features(rows, at_once))

  def _encoded(self, rows: Sequence[Row], at_once: int, features: Sequence[jax.Array | None]) -> list[jax.Array]:
    if not self._fused:
      features = [None] * len(rows)
    keys = [None if text is None or row.sentence is None else row.sentence.key for row, text in zip(rows, features)]
    known = {(id(row.square), key): row.square.known(key, self._device) for row, key in zip(rows, keys)}
    found = {key: embedding for key, embedding in known.items() if embedding is not None}
    for with_text in (False, True):
      missing = {
        (id(row.square), key): i
        for i, (row, key) in enumerate(zip(rows, keys))
        if (id(row.square), key) not in found and (features[i] is not None) == with_text
      }
      self._encode(rows, keys, features if with_text else None, list(missing.values()), at_once, found)
    return [found[id(row.square), key] for row, key in zip(rows, keys)]

  def _encode(self, rows, keys, features, missing: list[int], at_once: int, found: dict) -> None:
    part, weights = self._parts.encoder
    for some, padded in _batches(missing, at_once):
      images = np.stack([rows[i].square.pixels for i in padded])
      texts = None if features is None else tuple(features[i] for i in padded)
      for i, embedding in zip(some, programs.encode(part, weights, jax.device_put(images, self._device), texts)):
        found[id(rows[i].square), keys[i]] = embedding
        rows[i].square.keep(keys[i], self._device, embedding)

  def _features(self, rows: Sequence[Row], at_once: int) -> list[jax.Array | None]:
    """Text features [T, Ct] of each row's sentence, or None without one."""
    # The batch size is part of the key because it changes the rounding.
    keys = [None if row.sentence is None else (at_once, row.sentence.key) for row in rows]
    sentences = {key: row.sentence for key, row in zip(keys, rows) if row.sentence is not None}
    with self._lock:
      found = {key: self._sentences[key] for key in sentences if key in self._sentences}
    missing = [key for key in sentences if key not in found]
    for some, padded in _batches(missing, at_once):
      assert self._parts.reader is not None  # models without a text encoder never get sentences
      part, weights = self._parts.reader
      tokens = [np.stack([sentences[key][i] for key in padded]) for i in range(2)]
      found.update(zip(some, programs.read(part, weights, *jax.device_put(tokens, self._device))))
    with self._lock:
      self._sentences.update((key, found[key]) for key in missing)
      while len(self._sentences) > _SENTENCES_KEPT:
        self._sentences.popitem(last=False)
    return [None if key is None else found[key] for key in keys]

  def _decode(self, rows: list[Row], embeddings: list[jax.Array], features: list[jax.Array | None], squares: bool):
    part, weights = self._parts.decoder
    has_text, tokens, has_mask, multimask = rows[0].kind
    given = [row.points for row in rows if row.points is not None]
    points = (np.stack([xy for xy, _ in given]), np.stack([labels for _, labels in given])) if tokens else None
    masks = np.stack([row.mask for row in rows if row.mask is not None]) if has_mask else None
    points, masks = jax.device_put((points, masks), self._device)
    texts = tuple(text for text in features if text is not None) if has_text else None
    return programs.decode(part, weights, tuple(embeddings), points, masks, texts, multimask=multimask, squares=squares)


def _groups(rows: list[Row], embeddings: list[jax.Array] | None) -> list[tuple[list[int], bool]]:
  """Groups row indices that can be batched; the flag tells whether a group shares one of `embeddings`, if given."""
  groups: dict[tuple[tuple, int | None], list[int]] = {}
  for i, row in enumerate(rows):
    groups.setdefault((row.kind, None if embeddings is None else id(embeddings[i])), []).append(i)
  if embeddings is None:
    return [(group, False) for group in groups.values()]
  alone: dict[tuple, list[int]] = {}  # images with a single prompt share batches
  for (kind, _), group in groups.items():
    if len(group) == 1:
      alone.setdefault(kind, []).extend(group)
  shared = [(group, True) for group in groups.values() if len(group) > 1]
  return shared + [(group, len(group) == 1) for group in alone.values()]


def _batches(items: list, size: int) -> Iterable[tuple[list, list]]:
  """Yields batches of at most `size` items, each also padded to `size` by repeating its last item."""
  for start in range(0, len(items), size):
    some = items[start : start + size]
    yield some, some + some[-1:] * (size - len(some))


def _cast(weights: Weights, dtype: jnp.dtype) -> Weights:
  return {name: cast_array(name, array, dtype) for name, array in weights.items()}
