"""TensorBoard events as bytes, without TensorFlow.

tensorboardX' own writer is not used: its thread dies silently on a full disk, and later writes hang.
"""

import struct
import time

import numpy as np
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
