"""Traces a PyTorch peer into ONNX programs."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import onnxscript.optimizer
import torch

from ditsam_jax.convert.sources import release_tensors
from ditsam_jax.convert.torch_peer import Peer
from ditsam_jax.exporting import onnx_modules
from ditsam_jax.exporting.interface import array
from ditsam_jax.exporting.source import Source
from ditsam_jax.models.config import DitSamConfig

OPSET = 20
DTYPES = {ir.DataType.FLOAT: 'float32', ir.DataType.INT64: 'int64'}
_SMALL = 256  # elements; smaller weights stay f32
_LARGEST_FOLDED = 4096  # elements; larger constants, such as position tables spread over rows, are computed when loaded
_LARGEST_FILE = 1.8e9  # bytes of weights; the format allows 2 GB in a file

Shape = list[int | str]  # axes of any size have names


class Program(NamedTuple):
  """A program to trace: its file, module, and the names and shapes of inputs and outputs."""

  file: str
  module: torch.nn.Module
  inputs: dict[str, Shape]
  outputs: dict[str, Shape]

  def description(self) -> dict[str, Any]:
    """Its entry in interface.json."""

    def all_of(arrays: dict[str, Shape]) -> list[dict[str, Any]]:
      return [array(name, 'int64' if name.startswith('token_') else 'float32', shape) for name, shape in arrays.items()]

    return {'file': self.file, 'inputs': all_of(self.inputs), 'outputs': all_of(self.outputs)}


def peer_of(source: Source) -> Peer:
  """The model in PyTorch, with position tables of the model's grid."""
  peer = Peer(source.config).eval()
  peer.load_state_dict({name: tensor.float() for name, tensor in release_tensors(source.weights).items()}, strict=True)
  peer.requires_grad_(False)
  onnx_modules.prepare(peer)
  return peer


def programs(peer: Peer, *, all_masks: bool) -> list[Program]:
  """The programs of a model; for `all_masks` see `onnx_modules.Decoder`."""
  config: DitSamConfig = peer.config
  size, grid, width, tokens = config.image_size, config.grid, config.mask_decoder.width, config.max_text_tokens
  masks = 4 if all_masks else 1
  decoder = onnx_modules.Decoder(peer, all_masks)
  encoder = onnx_modules.ImageEncoder(peer)
  images: dict[str, Shape] = {'images': ['batch', 3, size, size]}
  embeddings: dict[str, Shape] = {'image_embeddings': ['batch', width, grid, grid]}
  outputs: dict[str, Shape] = {
    'masks': ['prompts', masks, 'height', 'width'],
    'iou_predictions': ['prompts', masks],
    'low_res_masks': ['prompts', masks, 4 * grid, 4 * grid],
  }
  images_of_prompts = 1 if config.text_encoder is None else 'prompts'
  prompts: dict[str, Shape] = {
    'image_embeddings': [images_of_prompts, width, grid, grid],
    'point_coords': ['prompts', 'points', 2],
    'point_labels': ['prompts', 'points'],
    'mask_input': [images_of_prompts, 1, 4 * grid, 4 * grid],
    'has_mask_input': [1],
    'orig_im_size': [2],
  }
  if config.text_encoder is None:
    return [
      Program('image_encoder.onnx', encoder, images, embeddings),
      Program('decoder.onnx', decoder, prompts, outputs),
    ]
  text = config.text_encoder.width
  if config.encodes_text_with_image:
    images |= {'text_features': ['batch', 'tokens', text]}
  return [
    Program(
      'text_encoder.onnx',
      onnx_modules.TextEncoder(peer),
      {'token_ids': ['batch', tokens], 'token_mask': ['batch', tokens]},
      {'text_features': ['batch', tokens, text]},
    ),
    Program('image_encoder.onnx', encoder, images, embeddings),
    Program('decoder.onnx', decoder, prompts | {'text_features': ['prompts', 'tokens', text]}, outputs),
  ]


def trace(program: Program) -> ir.Model:
  """Traces a program with torch.onnx.export."""
  example = {'batch': 2, 'prompts': 2, 'points': 3, 'tokens': 4}
  sizes = {name: torch.export.Dim(name, min=0 if name in ('points', 'tokens') else 1) for name in example}
  arguments, dynamic = [], []
  for name, shape in program.inputs.items():
    ones = torch.ones([example[axis] if isinstance(axis, str) else axis for axis in shape])
    arguments.append(ones.long() if name.startswith('token_') else ones * (90 if name == 'orig_im_size' else 1))
    dynamic.append({i: sizes[axis] for i, axis in enumerate(shape) if axis in sizes})
  with _quiet():
    traced = torch.onnx.export(
      program.module.eval(),
      tuple(arguments),
      input_names=list(program.inputs),
      output_names=list(program.outputs),
      dynamic_shapes=tuple(dynamic),
      opset_version=OPSET,
      dynamo=True,
      optimize=False,
    )
  assert traced is not None  # no file was given
  model = traced.model
  onnxscript.optimizer.optimize_ir(model, output_size_limit=_LARGEST_FOLDED)
  for value, shape in zip(model.graph.outputs, program.outputs.values()):
    value.shape = ir.Shape(shape)  # 'height' instead of torch's 'u0'
  _strip(model)
  return model


def save(model: ir.Model, path: Path) -> None:
  """Writes or replaces a program. Weights over 2 GB, the format's limit, go to a separate file."""
  data = path.with_name(f'{path.name}.data')
  ir.external_data.load_to_model(model)  # perhaps from the file that is replaced
  data.unlink(missing_ok=True)
  size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
  ir.save(model, path, external_data=data.name if size > _LARGEST_FILE else None)


def halve(model: ir.Model) -> None:
  """Stores weights as f16 where that is lossless; ONNX Runtime casts them to f32 when it loads the program."""
  graph = model.graph
  first = graph[0]
  for name, value in list(graph.initializers.items()):
    tensor = value.const_value
    if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _SMALL:
      continue
    single = tensor.numpy()
    with np.errstate(over='ignore'):  # compared below
      half = single.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), single):
      continue
    cast = ir.node('Cast', [ir.Value(name=f'{name}.f16', const_value=ir.tensor(half))], {'to': ir.DataType.FLOAT})
    stored = cast.inputs[0]
    assert stored is not None
    stored.shape, stored.type = ir.Shape(half.shape), ir.TensorType(ir.DataType.FLOAT16)
    ir.convenience.replace_all_uses_with(value, cast.outputs[0])
    del graph.initializers[name]
    cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, value.type
    graph.register_initializer(stored)
    graph.insert_before(first, cast)


def _strip(model: ir.Model) -> None:
  """Removes the exporter's debugging metadata: source lines with this machine's paths, larger than the weights."""
  model.metadata_props.clear()
  model.graph.metadata_props.clear()
  for node in model.graph:
    node.metadata_props.clear()
    node.doc_string = None
    for value in node.outputs:
      value.metadata_props.clear()
  for value in [*model.graph.inputs, *model.graph.initializers.values()]:
    value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Hides what torch.onnx.export prints about its progress."""
  with contextlib.redirect_stdout(io.StringIO()):
    yield
