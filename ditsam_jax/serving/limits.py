"""Limits per client and for all clients together."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """Limits of the service. Requests beyond them are refused with 4xx, or with 429 or 503 if retrying may help.

  An answer that takes too long is given up with 504; retrying would compute the same again.

  Attributes:
    upload_bytes: size of an image file.
    pixels: pixels of an image, checked before decoding.
    request_bytes: size of a JSON body; a mask prompt takes most of it.
    prompts: prompts per request.
    points: points per prompt. Programs for up to this many are compiled before the service is ready.
    text_bytes: size of a sentence.
    kept_bytes: memory of all stored images, including embeddings.
    kept_seconds: time that an unused image is stored.
    queue: waiting prompts of all clients.
    per_client: waiting prompts of one client.
    uploads: images being received or decoded.
    decoding: images decoded at the same time; their memory comes on top of `kept_bytes`.
    everything: images in which everything is, or will be, segmented.
    seconds: time from a request's arrival to its answer.
    everything_seconds: the same for everything in an image.
    upload_seconds: time for a client to send a request's body.
    header_seconds: time for a client to send a request's head, and to read an answer.
    connections: open connections; further ones are closed unread.
    batch_wait: seconds that a prompt waits for others to form a batch.
  """

  upload_bytes: int = 20 * 2**20
  pixels: int = 32_000_000
  request_bytes: int = 2**21
  prompts: int = 16
  points: int = 30
  text_bytes: int = 1000
  kept_bytes: int = 2**30
  kept_seconds: float = 3600.0
  queue: int = 256
  per_client: int = 32
  uploads: int = 32
  decoding: int = 2
  everything: int = 4
  seconds: float = 30.0
  everything_seconds: float = 120.0
  upload_seconds: float = 30.0
  header_seconds: float = 10.0
  connections: int = 4000
  batch_wait: float = 0.003
