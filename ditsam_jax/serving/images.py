"""Stores uploaded images for a limited time; only the owner of an image can access it."""

import collections
import contextlib
import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator

from ditsam_jax.inference.engine import EMBEDDINGS_KEPT
from ditsam_jax.inference.framing import Framed
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.serving.refusals import Refused


@dataclasses.dataclass(eq=False)
class Kept:
  """An image in the store.

  Attributes:
    id: 192 random bits.
    owner: the session that uploaded it.
    framed: the image.
    bytes: maximum memory, including embeddings.
    used: time of last use.
    held: number of requests using it.
    dropped: whether it was removed; its bytes count until no request holds it.
  """

  id: str
  owner: str
  framed: Framed
  bytes: int
  used: float
  held: int = 0
  dropped: bool = False


class ImageStore:
  """Images by id; evicts the least recently used. Only for the event loop's thread."""

  def __init__(self, most_bytes: int, seconds: float, clock: Callable[[], float] = time.monotonic):
    self._most_bytes, self._seconds, self._clock = most_bytes, seconds, clock
    self._images: collections.OrderedDict[str, Kept] = collections.OrderedDict()
    self.bytes = 0  # of all images, including dropped ones that are still held
    self.evicted = 0

  def __len__(self) -> int:
    return len(self._images)

  def add(self, owner: str, framed: Framed) -> Kept:
    """Stores an image.

    Raises:
      Refused: there is no room, because the image is too large or all others are in use.
    """
    self.expire()
    size = bytes_of(framed)
    if size > self._most_bytes:
      raise Refused(413, f'the image takes {size:,} bytes of memory; expected at most {self._most_bytes:,}')
    for image in list(self._images.values()):
      if self.bytes + size <= self._most_bytes:
        break
      if not image.held:
        self.drop(image)
        self.evicted += 1
    if self.bytes + size > self._most_bytes:
      raise Refused(503, 'all stored images are in use; try again', 1)
    image = Kept(secrets.token_urlsafe(24), owner, framed, size, self._clock())
    self._images[image.id] = image
    self.bytes += size
    return image

  def get(self, owner: str, id: str) -> Kept:
    """Returns the owner's image. Raises the same Refused for unknown, expired and other clients' images."""
    self.expire()
    image = self._images.get(id)
    if image is None or not secrets.compare_digest(image.owner.encode(), owner.encode()):
      raise Refused(404, 'no such image; it may have expired or belong to another session: upload it again')
    image.used = self._clock()
    self._images.move_to_end(id)
    return image

  def drop(self, image: Kept) -> None:
    """Removes an image; its memory is freed when no request holds it."""
    if not image.dropped:
      image.dropped = True
      del self._images[image.id]
      self._free(image)

  @contextlib.contextmanager
  def hold(self, image: Kept) -> Iterator[None]:
    """Protects an image from eviction while in use."""
    image.held += 1
    try:
      yield
    finally:
      image.held -= 1
      self._free(image)

  def expire(self) -> None:
    """Removes images unused for too long."""
    oldest = self._clock() - self._seconds
    for image in list(self._images.values()):  # least recently used first
      if image.used > oldest:
        break
      self.drop(image)

  def _free(self, image: Kept) -> None:
    if image.dropped and not image.held and image.bytes:
      self.bytes -= image.bytes
      image.bytes = 0


def bytes_of(framed: Framed) -> int:
  """Returns the maximum memory of an image in bytes: pixels, the model's square and all its cached embeddings."""
  return framed.image.nbytes + framed.square.pixels.nbytes + embeddings_bytes(framed.config)


def embeddings_bytes(config: DitSamConfig) -> int:
  """Returns the bytes of all cached embeddings of an image, in f32."""
  count = 1 + EMBEDDINGS_KEPT if config.encodes_text_with_image else 1
  return count * config.grid**2 * config.mask_decoder.width * 4
