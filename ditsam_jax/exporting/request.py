"""The request for an export."""

from typing import NamedTuple


class Request(NamedTuple):
  """The options of one export.

  Attributes:
    checkpoint: a shipped model's name, a model's folder or a training run's workdir.
    output: the folder to write.
    dtype: type of the stored weights.
    quantise: 'int8' or None.
    masks: what an ONNX decoder returns, 'best' or 'all'.
  """

  checkpoint: str
  output: str
  dtype: str = 'float32'
  quantise: str | None = None
  masks: str | None = None
