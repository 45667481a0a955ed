"""The one way through a model: rows, each an image and a prompt, to logits, on all devices of this host.

Rows are computed so many at once, filled up where there are fewer, so that a program is compiled once for one row and
once for a batch. What rows share is computed once: a sentence is read once, an image encoded once, with each sentence
once where the sentence enters the image encoder.

XLA rounds differently for every shape of a program, but not by what else is in a batch: with the same `at_once`, and
`one_image` left out, a row's logits have the same bits whatever rows come with it and however many devices there are.
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

_SENTENCES_KEPT = 256  # on a device; of BERT base 60 kB each
_EMBEDDINGS_KEPT = 8  # of an image, with as many sentences; at 512 1 MB each


class Square:
  """An image as the model sees it, f32 [S, S, 3], and its embeddings so far, which go with it.

  An embedding is known by the sentence that the image was seen with, None for the image alone.
  """

  def __init__(self, pixels: np.ndarray):
    self.pixels = pixels
    self._embeddings: dict[Hashable, dict[Device, jax.Array]] = {}

  def known(self, sentence: Hashable, device: Device) -> jax.Array | None:
    """An embedding, which another device may have computed."""
    copies = self._embeddings.get(sentence, {})
    if copies and device not in copies:
      copies[device] = jax.device_put(next(iter(copies.values())), device)
    return copies.get(device)

  def keep(self, sentence: Hashable, device: Device, embedding: jax.Array) -> None:
    """Keeps an embedding; that of the image alone stays, those with sentences make room for later ones."""
    self._embeddings[sentence] = {device: embedding}
    with_sentence = [key for key in list(self._embeddings) if key is not None]
    for key in with_sentence[:-_EMBEDDINGS_KEPT]:
      self._embeddings.pop(key, None)


class Sentence(NamedTuple):
  """Token ids and 0/1 mask, int32 [T] each."""

  token_ids: np.ndarray
  token_mask: np.ndarray

  @property
  def key(self) -> Hashable:
    return self.token_ids.tobytes(), self.token_mask.tobytes()


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
  """One image and what is asked of it.

  Attributes:
    square: the image.
    sentence: or None.
    points: (x, y) in pixels of the square f32 [P, 2] and labels i32 [P], see `prompts.point_tokens`; None for none.
    mask: f32 [S/4, S/4], or None.
    multimask: three masks.
  """

  square: Square
  sentence: Sentence | None = None
  points: tuple[np.ndarray, np.ndarray] | None = None
  mask: np.ndarray | None = None
  multimask: bool = False

  @property
  def kind(self) -> tuple:
    """Rows of one kind go through one program together."""
    tokens = 0 if self.points is None else len(self.points[0])
    return self.sentence is not None, tokens, self.mask is not None, self.multimask


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
  """What a program makes of some rows; nothing waits for it until an array is looked at.

  Attributes:
    rows: their places among all rows; what lies behind them in the arrays is filling.
    logits: f32 [R, M, S/4, S/4], or of the whole square [R, M, S, S].
    iou: f32 [R, M].
  """

  rows: list[int]
  logits: jax.Array
  iou: jax.Array


class Engine:
  """A model on the devices of this host."""

  def __init__(self, model: DitSam, dtype: str | None = 'auto'):
    """Takes the model's weights as they are now.

    Args:
      model: in any mode; it is run without dropout.
      dtype: what to compute in, one of `weights.DTYPES`; None for the type of the weights, as 'auto' does where that
        is not f32.

    Raises:
      UserError: there is no such type.
    """
    self.config = model.config
    self.devices = jax.local_devices()
    parts = programs.parts_of(model)
    given = next(iter(parts.encoder[1].values())).dtype
    narrow = dtype == 'auto' and given != jnp.float32  # somebody chose it
    chosen = given if dtype is None or narrow else dtype_named(dtype, self.devices[0].platform)
    self.dtype = chosen.name
    self.parts = parts.mapped(lambda weights: _cast(weights, chosen))
    self._lock = threading.Lock()
    self._replicas: dict[Device, _Replica] = {}

  def run(self, rows: Sequence[Row], at_once: int, *, one_image: bool = False, squares: bool = False) -> list[Piece]:
    """Starts the computation of rows; devices take whole stretches of them.

    Args:
      rows: in any order; those of one image are best beside each other.
      at_once: rows a program takes.
      one_image: decode prompts of one embedding from it, which saves work, and rounds differently.
      squares: logits of the model's whole square.
    """
    share = -(-len(rows) // (len(self.devices) * at_once)) * at_once
    pieces = []
    for device, start in zip(self.devices, range(0, len(rows), max(share, 1))):
      places = range(start, min(start + share, len(rows)))
      pieces += self._replica(device).run(rows, places, at_once, one_image, squares)
    return pieces

  def embedding(self, square: Square, sentence: Sentence | None = None) -> jax.Array:
    """The embedding [h, w, C] of an image, computed if it is not known."""
    return self._replica(self.devices[0]).embeddings([Row(square, sentence)], 1)[0]

  def encode(self, squares: Sequence[Square], at_once: int, sentence: Sentence | None = None) -> None:
    """Starts to encode images that are not known yet, `at_once` in a program, on all devices; later rows find them."""
    share = -(-len(squares) // (len(self.devices) * at_once)) * at_once
    for device, start in zip(self.devices, range(0, len(squares), max(share, 1))):
      self._replica(device).encode([Row(square, sentence) for square in squares[start : start + share]], at_once)

  def _replica(self, device: Device) -> '_Replica':
    with self._lock:
      if device not in self._replicas:  # one that is never needed gets no weights
        self._replicas[device] = _Replica(self.parts, self.config.fusion != 'none', device)
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
    """The rows at some places."""
    places = list(places)
    mine = [rows[place] for place in places]
    features = self._features(mine, at_once)
    embeddings = self.embeddings(mine, at_once, features)
    pieces = []
    for group, together in _groups(mine, embeddings if one_image else None):
      for start in range(0, len(group), at_once):
        some = group[start : start + at_once]
        filled = some + some[-1:] * (at_once - len(some))
        seen = [embeddings[i] for i in (filled[:1] if together else filled)]
        outputs = self._decoded([mine[i] for i in filled], seen, [features[i] for i in filled], squares)
        pieces.append(Piece([places[i] for i in some], *outputs))
    return pieces

  def embeddings(
    self, rows: Sequence[Row], at_once: int, features: Sequence[jax.Array | None] | None = None
  ) -> list[jax.Array]:
    """Of the image of every row, with its sentence where that enters the image encoder."""
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
    for some, filled in _batches(missing, at_once):
      images = np.stack([rows[i].square.pixels for i in filled])
      texts = None if features is None else tuple(features[i] for i in filled)
      for i, embedding in zip(some, programs.encode(part, weights, jax.device_put(images, self._device), texts)):
        found[id(rows[i].square), keys[i]] = embedding
        rows[i].square.keep(keys[i], self._device, embedding)

  def _features(self, rows: Sequence[Row], at_once: int) -> list[jax.Array | None]:
    """Text features [T, Ct] of every row's sentence; None for none."""
    # Those read in a batch of another size have other bits.
    keys = [None if row.sentence is None else (at_once, row.sentence.key) for row in rows]
    sentences = {key: row.sentence for key, row in zip(keys, rows) if row.sentence is not None}
    with self._lock:
      found = {key: self._sentences[key] for key in sentences if key in self._sentences}
    missing = [key for key in sentences if key not in found]
    for some, filled in _batches(missing, at_once):
      assert self._parts.reader is not None  # a model without one is given no sentences
      part, weights = self._parts.reader
      tokens = [np.stack([sentences[key][i] for key in filled]) for i in range(2)]
      found.update(zip(some, programs.read(part, weights, *jax.device_put(tokens, self._device))))
    with self._lock:
      self._sentences.update((key, found[key]) for key in missing)
      while len(self._sentences) > _SENTENCES_KEPT:
        self._sentences.popitem(last=False)
    return [None if key is None else found[key] for key in keys]

  def _decoded(self, rows: list[Row], embeddings: list[jax.Array], features: list[jax.Array | None], squares: bool):
    part, weights = self._parts.decoder
    has_text, tokens, has_mask, multimask = rows[0].kind
    given = [row.points for row in rows if row.points is not None]
    points = (np.stack([xy for xy, _ in given]), np.stack([labels for _, labels in given])) if tokens else None
    masks = np.stack([row.mask for row in rows if row.mask is not None]) if has_mask else None
    points, masks = jax.device_put((points, masks), self._device)
    texts = tuple(text for text in features if text is not None) if has_text else None
    return programs.decode(part, weights, tuple(embeddings), points, masks, texts, multimask=multimask, squares=squares)


def _groups(rows: list[Row], embeddings: list[jax.Array] | None) -> list[tuple[list[int], bool]]:
  """Places of rows that go through one program together, and whether from one embedding (where those are given)."""
  groups: dict[tuple[tuple, int | None], list[int]] = {}
  for i, row in enumerate(rows):
    groups.setdefault((row.kind, None if embeddings is None else id(embeddings[i])), []).append(i)
  if embeddings is None:
    return [(group, False) for group in groups.values()]
  alone: dict[tuple, list[int]] = {}  # an embedding with a single prompt is no reason for a batch of its own
  for (kind, _), group in groups.items():
    if len(group) == 1:
      alone.setdefault(kind, []).extend(group)
  shared = [(group, True) for group in groups.values() if len(group) > 1]
  return shared + [(group, len(group) == 1) for group in alone.values()]


def _batches(items: list, size: int) -> Iterable[tuple[list, list]]:
  """Some of the items at a time, and the same filled up to `size` by the last one."""
  for start in range(0, len(items), size):
    some = items[start : start + size]
    yield some, some + some[-1:] * (size - len(some))


def _cast(weights: Weights, dtype: jnp.dtype) -> Weights:
  return {name: cast_array(name, array, dtype) for name, array in weights.items()}
