"""int8 weights, by ONNX Runtime's dynamic quantisation."""

import tempfile
from pathlib import Path

import onnx
import onnx_ir as ir
from onnxruntime.quantization import QuantType, quantize_dynamic

from ditsam_jax.exporting.onnx_programs import save

# Convolutions stay f32: as ConvInteger they are slower on CPUs and hold few of the weights.
_OPERATIONS = ['MatMul', 'Gemm']
# Not weights of layers: frequencies of coordinates, tokens that labels select, and the resizing of masks.
EXACT = ('gaussian_matrix', 'point_embeddings', 'upscaling')


def quantise(file: Path) -> None:
  """Quantises the weights of matrix products in a file: per output channel, as uint8.

  Activations are quantised to uint8 when the program runs. uint8 weights give the same result on every CPU: products of
  uint8 and int8 saturate in the AVX2 instructions of ONNX Runtime.
  """
  nodes = onnx.load(file, load_external_data=False).graph.node
  with tempfile.TemporaryDirectory(dir=file.parent) as folder:
    quantised = Path(folder, file.name)
    quantize_dynamic(
      file,
      quantised,
      op_types_to_quantize=_OPERATIONS,
      nodes_to_exclude=[node.name for node in nodes if any(name.endswith(EXACT) for name in node.input)],
      per_channel=True,
      weight_type=QuantType.QUInt8,
      use_external_data_format=file.with_name(f'{file.name}.data').exists(),
    )
    save(ir.load(quantised), file)
