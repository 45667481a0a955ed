"""The one table of names: our parameters and the release's tensors, with the change of layout between them."""

from collections.abc import Callable
import re
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
  """How a tensor changes: `load` from PyTorch's layout to ours, `save` back."""
  load: Callable[[np.ndarray], np.ndarray]
  save: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # [out, in, h, w] <-> HWIO
CONV_1X1 = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
UP_CONV = Layout(lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2))  # [in, out, 2, 2] <-> [in, 2, 2, out]
BATCHED = Layout(lambda x: x[0], lambda x: x[None])  # a leading axis of 1

# Ours (a regular expression over the dotted path) -> the release's name. First match wins; kernels and scales that no
# row names are linear kernels and norm scales.
TABLE: tuple[tuple[str, str, Layout], ...] = (
    (r'image_encoder\.pos_embed', 'visual_encoder.pos_embed', BATCHED),
    (r'image_encoder\.patch_embed\.kernel', 'visual_encoder.patch_embed.proj.weight', CONV),
    (r'image_encoder\.patch_embed\.bias', 'visual_encoder.patch_embed.proj.bias', SAME),
    (r'image_encoder\.neck\.conv1\.kernel', 'visual_encoder.neck.0.weight', CONV_1X1),
    (r'image_encoder\.neck\.norm1\.(.*)', r'visual_encoder.neck.1.\1', SAME),
    (r'image_encoder\.neck\.conv2\.kernel', 'visual_encoder.neck.2.weight', CONV),
    (r'image_encoder\.neck\.norm2\.(.*)', r'visual_encoder.neck.3.\1', SAME),
    (r'image_encoder\.instruction\.(.*)\.kernel', r'visual_encoder.\1.weight', LINEAR),
    (r'image_encoder\.instruction\.(.*)', r'visual_encoder.\1', SAME),
    (r'image_encoder\.(.*)\.kernel', r'visual_encoder.\1.weight', LINEAR),
    (r'image_encoder\.(.*)', r'visual_encoder.\1', SAME),
    (r'prompt_encoder\.pe_layer\.gaussian_matrix', 'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix', SAME),
    (r'prompt_encoder\.(not_a_point_embed|no_mask_embed)', r'prompt_encoder.\1.weight', SAME),
    (r'prompt_encoder\.mask_downscaling\.conv1\.kernel', 'prompt_encoder.mask_downscaling.0.weight', CONV),
    (r'prompt_encoder\.mask_downscaling\.conv1\.bias', 'prompt_encoder.mask_downscaling.0.bias', SAME),
    (r'prompt_encoder\.mask_downscaling\.norm1\.(.*)', r'prompt_encoder.mask_downscaling.1.\1', SAME),
    (r'prompt_encoder\.mask_downscaling\.conv2\.kernel', 'prompt_encoder.mask_downscaling.3.weight', CONV),
    (r'prompt_encoder\.mask_downscaling\.conv2\.bias', 'prompt_encoder.mask_downscaling.3.bias', SAME),
    (r'prompt_encoder\.mask_downscaling\.norm2\.(.*)', r'prompt_encoder.mask_downscaling.4.\1', SAME),
    (r'prompt_encoder\.mask_downscaling\.conv3\.kernel', 'prompt_encoder.mask_downscaling.6.weight', CONV_1X1),
    (r'prompt_encoder\.mask_downscaling\.conv3\.bias', 'prompt_encoder.mask_downscaling.6.bias', SAME),
    (r'mask_decoder\.(iou_token|mask_tokens)', r'mask_decoder.\1.weight', SAME),
    (r'mask_decoder\.upscale1\.kernel', 'mask_decoder.output_upscaling.0.weight', UP_CONV),
    (r'mask_decoder\.upscale1\.bias', 'mask_decoder.output_upscaling.0.bias', SAME),
    (r'mask_decoder\.upscale_norm\.(.*)', r'mask_decoder.output_upscaling.1.\1', SAME),
    (r'mask_decoder\.upscale2\.kernel', 'mask_decoder.output_upscaling.3.weight', UP_CONV),
    (r'mask_decoder\.upscale2\.bias', 'mask_decoder.output_upscaling.3.bias', SAME),
    (r'text_encoder\.embeddings\.norm\.(.*)', r'lang_encoder.bert.embeddings.LayerNorm.\1', SAME),
    (r'text_encoder\.embeddings\.(\w+)\.embedding', r'lang_encoder.bert.embeddings.\1.weight', SAME),
    (r'text_encoder\.layers\.(\d+)\.(query|key|value)\.(.*)',
     r'lang_encoder.bert.encoder.layer.\1.attention.self.\2.\3', SAME),
    (r'text_encoder\.layers\.(\d+)\.attention_output\.(.*)',
     r'lang_encoder.bert.encoder.layer.\1.attention.output.dense.\2', SAME),
    (r'text_encoder\.layers\.(\d+)\.attention_norm\.(.*)',
     r'lang_encoder.bert.encoder.layer.\1.attention.output.LayerNorm.\2', SAME),
    (r'text_encoder\.layers\.(\d+)\.intermediate\.(.*)',
     r'lang_encoder.bert.encoder.layer.\1.intermediate.dense.\2', SAME),
    (r'text_encoder\.layers\.(\d+)\.output\.(.*)', r'lang_encoder.bert.encoder.layer.\1.output.dense.\2', SAME),
    (r'text_encoder\.layers\.(\d+)\.output_norm\.(.*)', r'lang_encoder.bert.encoder.layer.\1.output.LayerNorm.\2', SAME),
)


def release_name(path: str) -> tuple[str, Layout]:
  """The release's name of our parameter at a dotted path, and the change of layout."""
  for pattern, name, layout in TABLE:
    match = re.fullmatch(pattern, path)
    if match:
      return _finish(match.expand(name), layout)
  return _finish(path, SAME)


def _finish(name: str, layout: Layout) -> tuple[str, Layout]:
  if name.endswith('.kernel'):
    return name.removesuffix('.kernel') + '.weight', LINEAR
  if name.endswith('.scale'):
    return name.removesuffix('.scale') + '.weight', layout
  return name, layout
