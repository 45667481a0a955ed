"""TensorBoard events as bytes, without TensorFlow.

tensorboardX's own writer is not used: its thread dies silently on a full disk, and later writes hang.
"""

import contextlib
import struct
import sys
import time
from collections.abc import Iterator

import numpy as np


@contextlib.contextmanager
def _without_torch() -> Iterator[None]:
  """Makes `import torch` fail. tensorboardX imports it if installed, taking 1.3 s, and only needs it for tensors."""
  if 'torch' in sys.modules:
    yield
    return
  sys.modules['torch'] = None  # pyright: ignore[reportArgumentType]  # importing it then raises ImportError
  try:
    yield
  finally:
    del sys.modules['torch']


with _without_torch():
  from tensorboardX import summary
  from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]  # created by protobuf at run time
  from tensorboardX.record_writer import masked_crc32c


def start() -> bytes:
  """Returns the first record of a file."""
  return _record(file_version='brain.Event:2')


def restart(step: int) -> bytes:
  """Returns the record that makes TensorBoard discard events of earlier files from `step` on."""
  return _record(step=step, session_log=SessionLog(status=SessionLog.START))


def scalar(step: int, name: str, value: float) -> bytes:
  """Returns the record of a number."""
  return _record(step=step, summary=summary.scalar(name, value))


def image(step: int, name: str, pixels: np.ndarray) -> bytes:
  """Returns the record of an image, uint8 [h, w, 3]."""
  return _record(step=step, summary=summary.image(name, pixels, dataformats='HWC'))


def _record(**fields) -> bytes:
  """An event in TFRecord format: length, checksum, data, checksum."""
  data = Event(wall_time=time.time(), **fields).SerializeToString()
  length = struct.pack('<Q', len(data))
  return b''.join(part + struct.pack('<I', masked_crc32c(part)) for part in (length, data))
