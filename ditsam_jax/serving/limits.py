"""Bounds on what one client, and all of them together, may ask of the service."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
  """What is accepted; more is refused with 4xx, or with 429 and 503 where waiting helps.

  Attributes:
    upload_bytes: of an image file.
    pixels: of an image, known before it is decoded.
    request_bytes: of a JSON body; a mask prompt takes most of it.
    prompts: of one request.
    points: of one prompt. Programs for this many are compiled before the service is ready.
    text_bytes: of a sentence.
    kept_bytes: of all images that are kept, with their embeddings.
    kept_seconds: how long an image is kept that nobody uses.
    queue: prompts that wait for the device, of all clients.
    per_client: prompts of one client that wait.
    uploads: images that are being received or decoded.
    seconds: from a request's arrival to its answer.
    upload_seconds: for a client to send a request's body.
    header_seconds: for a client to send a request's head, and to take an answer.
    connections: open at once; more are closed unread.
    batch_wait: seconds that a prompt waits for others to share a batch with.
  """

  upload_bytes: int = 20 * 2**20
  pixels: int = 2**25
  request_bytes: int = 2**21
  prompts: int = 16
  points: int = 30
  text_bytes: int = 1000
  kept_bytes: int = 2**30
  kept_seconds: float = 3600
  queue: int = 256
  per_client: int = 32
  uploads: int = 32
  seconds: float = 30
  upload_seconds: float = 30
  header_seconds: float = 10
  connections: int = 4000
  batch_wait: float = 0.003
