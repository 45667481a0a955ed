"""Maps our parameters to PyTorch tensors: names and layouts.

All sources are first renamed to the DIT release's names (one entry each in FORMATS). TABLE then maps our dotted paths
to those names, in both directions.
"""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from ditsam_jax.models.instruction import FUSIONS


class Layout(NamedTuple):
  """A change of layout: `load` converts from PyTorch's layout to ours, `save` back."""

  load: Callable[[np.ndarray], np.ndarray]
  save: Callable[[np.ndarray], np.ndarray]


SAME = Layout(lambda x: x, lambda x: x)
LINEAR = Layout(lambda x: x.T, lambda x: x.T)  # [out, in] <-> [in, out]
CONV = Layout(lambda x: x.transpose(2, 3, 1, 0), lambda x: x.transpose(3, 2, 0, 1))  # [out, in, h, w] <-> HWIO
CONV_1X1 = Layout(lambda x: x[:, :, 0, 0].T, lambda x: x.T[:, :, None, None])
UP_CONV = Layout(
  lambda x: x.transpose(0, 2, 3, 1), lambda x: x.transpose(0, 3, 1, 2)
)  # [in, out, 2, 2] <-> [in, 2, 2, out]
BATCHED = Layout(lambda x: x[0], lambda x: x[None])  # a leading axis of 1

LAYOUTS = {'same': SAME, 'linear': LINEAR}  # the names used by fusions


def _fusion_rows() -> list[tuple[str, str, Layout]]:
  """The rows of TABLE for the parameters of all fusions, see models/instruction.py."""
  return [
    (
      r'image_encoder\.instruction\.' + r'(\d+)'.join(map(re.escape, tensor.path.split('#'))),
      'visual_encoder.' + tensor.source.replace('#', r'\1'),
      LAYOUTS[tensor.layout],
    )
    for fusion in FUSIONS.values()
    for tensor in fusion.tensors
  ]


# Our dotted path (a regular expression) -> the release's name. The first match wins; kernels and scales without a row
# are linear kernels and norm scales.
TABLE: tuple[tuple[str, str, Layout], ...] = (
  (r'image_encoder\.pos_embed', 'visual_encoder.pos_embed', BATCHED),
  (r'image_encoder\.patch_embed\.kernel', 'visual_encoder.patch_embed.proj.weight', CONV),
  (r'image_encoder\.patch_embed\.bias', 'visual_encoder.patch_embed.proj.bias', SAME),
  (r'image_encoder\.neck\.conv1\.kernel', 'visual_encoder.neck.0.weight', CONV_1X1),
  (r'image_encoder\.neck\.norm1\.(.*)', r'visual_encoder.neck.1.\1', SAME),
  (r'image_encoder\.neck\.conv2\.kernel', 'visual_encoder.neck.2.weight', CONV),
  (r'image_encoder\.neck\.norm2\.(.*)', r'visual_encoder.neck.3.\1', SAME),
  *_fusion_rows(),
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
  (
    r'text_encoder\.layers\.(\d+)\.(query|key|value)\.(.*)',
    r'lang_encoder.bert.encoder.layer.\1.attention.self.\2.\3',
    SAME,
  ),
  (
    r'text_encoder\.layers\.(\d+)\.attention_output\.(.*)',
    r'lang_encoder.bert.encoder.layer.\1.attention.output.dense.\2',
    SAME,
  ),
  (
    r'text_encoder\.layers\.(\d+)\.attention_norm\.(.*)',
    r'lang_encoder.bert.encoder.layer.\1.attention.output.LayerNorm.\2',
    SAME,
  ),
  (
    r'text_encoder\.layers\.(\d+)\.intermediate\.(.*)',
    r'lang_encoder.bert.encoder.layer.\1.intermediate.dense.\2',
    SAME,
  ),
  (r'text_encoder\.layers\.(\d+)\.output\.(.*)', r'lang_encoder.bert.encoder.layer.\1.output.dense.\2', SAME),
  (r'text_encoder\.layers\.(\d+)\.output_norm\.(.*)', r'lang_encoder.bert.encoder.layer.\1.output.LayerNorm.\2', SAME),
)


# Renames from another format to the release's names; the first match wins.
Renames = tuple[tuple[str, str], ...]
_GROUP = re.compile(r'\((?:[^()]|\(\?:[^()]*\))*\)')  # one in a pattern of HUGGING_FACE

META: Renames = ((r'image_encoder\.(.*)', r'visual_encoder.\1'), (r'((?:prompt_encoder|mask_decoder)\..*)', r'\1'))
RELEASE: Renames = ((r'((?:visual_encoder|prompt_encoder|mask_decoder|lang_encoder|text_proj)\..*)', r'\1'),)

_BERT_NAME = (r'(?:bert\.)?((?:embeddings|encoder\.layer)\..*)', r'lang_encoder.bert.\1')
BERT: Renames = (
  (r'(?:bert\.)?((?:embeddings|encoder\.layer)\..*)\.gamma', r'lang_encoder.bert.\1.weight'),  # TensorFlow's names
  (r'(?:bert\.)?((?:embeddings|encoder\.layer)\..*)\.beta', r'lang_encoder.bert.\1.bias'),
  _BERT_NAME,
)

_HF_ENCODER, _HF_MASKS, _HF_DECODER = r'vision_encoder\.', r'prompt_encoder\.mask_embed\.', r'mask_decoder\.'
_HF_MLP = _HF_DECODER + r'(.*mlps\.\d+|iou_prediction_head)\.'
_GAUSSIAN = 'prompt_encoder.pe_layer.positional_encoding_gaussian_matrix'
HUGGING_FACE: Renames = (
  (_HF_ENCODER + r'patch_embed\.projection\.(.*)', r'visual_encoder.patch_embed.proj.\1'),
  (_HF_ENCODER + r'layers\.(\d+)\.layer_norm(\d)\.(.*)', r'visual_encoder.blocks.\1.norm\2.\3'),
  (_HF_ENCODER + r'layers\.(.*)', r'visual_encoder.blocks.\1'),
  (_HF_ENCODER + r'neck\.conv1\.(.*)', r'visual_encoder.neck.0.\1'),
  (_HF_ENCODER + r'neck\.layer_norm1\.(.*)', r'visual_encoder.neck.1.\1'),
  (_HF_ENCODER + r'neck\.conv2\.(.*)', r'visual_encoder.neck.2.\1'),
  (_HF_ENCODER + r'neck\.layer_norm2\.(.*)', r'visual_encoder.neck.3.\1'),
  (_HF_ENCODER + r'(pos_embed)', r'visual_encoder.\1'),
  # The same buffer under two names; a file may contain only one of them.
  (r'shared_image_embedding\.positional_embedding', _GAUSSIAN),
  (r'prompt_encoder\.shared_embedding\.positional_embedding', _GAUSSIAN),
  (_HF_MASKS + r'conv1\.(.*)', r'prompt_encoder.mask_downscaling.0.\1'),
  (_HF_MASKS + r'layer_norm1\.(.*)', r'prompt_encoder.mask_downscaling.1.\1'),
  (_HF_MASKS + r'conv2\.(.*)', r'prompt_encoder.mask_downscaling.3.\1'),
  (_HF_MASKS + r'layer_norm2\.(.*)', r'prompt_encoder.mask_downscaling.4.\1'),
  (_HF_MASKS + r'conv3\.(.*)', r'prompt_encoder.mask_downscaling.6.\1'),
  (r'prompt_encoder\.point_embed\.(.*)', r'prompt_encoder.point_embeddings.\1'),
  (r'(prompt_encoder\.(?:not_a_point_embed|no_mask_embed)\..*)', r'\1'),
  (_HF_DECODER + r'transformer\.layers\.(\d+)\.layer_norm(\d)\.(.*)', r'mask_decoder.transformer.layers.\1.norm\2.\3'),
  (_HF_DECODER + r'transformer\.layer_norm_final_attn\.(.*)', r'mask_decoder.transformer.norm_final_attn.\1'),
  (_HF_DECODER + r'upscale_conv1\.(.*)', r'mask_decoder.output_upscaling.0.\1'),
  (_HF_DECODER + r'upscale_layer_norm\.(.*)', r'mask_decoder.output_upscaling.1.\1'),
  (_HF_DECODER + r'upscale_conv2\.(.*)', r'mask_decoder.output_upscaling.3.\1'),
  (_HF_MLP + r'proj_in\.(.*)', r'mask_decoder.\1.layers.0.\2'),
  (_HF_MLP + r'layers\.0\.(.*)', r'mask_decoder.\1.layers.1.\2'),
  (_HF_MLP + r'proj_out\.(.*)', r'mask_decoder.\1.layers.2.\2'),
  (r'(mask_decoder\..*)', r'\1'),
)


def meta_name(release: str) -> str:
  """Returns Meta's name of a tensor of the release."""
  return release.replace('visual_encoder.', 'image_encoder.', 1)


def hugging_face_name(release: str) -> str:
  """Returns Hugging Face's name of a tensor of the release, by the first rule backwards that gives it."""
  for pattern, name in HUGGING_FACE:
    groups = _GROUP.findall(pattern)
    backwards = re.sub(r'\\(\d)', lambda number: groups[int(number[1]) - 1], name.replace('.', r'\.'))
    if match := re.fullmatch(backwards, release):
      parts = iter(match.groups())
      return _GROUP.sub(lambda _: next(parts), pattern).replace(r'\.', '.')
  return release


class Format(NamedTuple):
  """A checkpoint format. Renames are regular expressions and replacements; the first match wins."""

  title: str
  model: Literal['DIT', 'SAM', 'BERT']
  marks: tuple[str, ...]  # prefixes of tensor names that occur only in this format
  renames: Renames
  leftovers: Renames = ()  # tensors that the original code never uses, renamed to the release's names; '' drops them
  spell: Callable[[str], str] = str  # spells a release's name in messages


# The supported formats. A new format is a new entry.
FORMATS: dict[str, Format] = {
  'release': Format(
    'the DIT release',
    'DIT',
    ('visual_encoder.',),
    RELEASE,
    (
      (r'(query_embeddings|self_attention\.(?:in_proj_(?:weight|bias)|out_proj\.(?:weight|bias)))', r'\1'),
      (r'(lang_encoder\.bert\.(?:pooler\.dense\.(?:weight|bias)|embeddings\.position_ids))', r'\1'),
    ),
  ),
  'meta': Format("Meta's SAM", 'SAM', ('image_encoder.',), META, spell=meta_name),
  'hugging_face': Format("Hugging Face's SamModel", 'SAM', ('vision_encoder.',), HUGGING_FACE, spell=hugging_face_name),
  'bert': Format(
    "Hugging Face's BertModel",
    'BERT',
    ('embeddings.word_embeddings.', 'bert.embeddings.word_embeddings.'),
    BERT,
    (
      (r'(?:bert\.)?(pooler\.dense\.(?:weight|bias))', r'lang_encoder.bert.\1'),
      (r'(?:bert\.)?embeddings\.position_ids|cls\..*', ''),
    ),
    spell=lambda release: release.removeprefix('lang_encoder.bert.'),
  ),
}


def renamed(name: str, source: str) -> str | None:
  """Returns the release's name of a tensor in a format (a key of FORMATS), or None."""
  return _first_match(name, FORMATS[source].renames)


def leftover(name: str, source: str) -> str | None:
  """Returns the release's name of a leftover, '' if it is dropped; None for tensors that are not leftovers."""
  return _first_match(name, FORMATS[source].leftovers)


def _first_match(name: str, renames: Renames) -> str | None:
  return next((match.expand(target) for pattern, target in renames if (match := re.fullmatch(pattern, name))), None)


class Entry(NamedTuple):
  """One of our parameters: the release's tensors it consists of, and the change of layout."""

  names: tuple[str, ...]
  load: Callable[[list[np.ndarray]], np.ndarray]
  save: Callable[[np.ndarray], list[np.ndarray]]


def entry(path: str) -> Entry:
  """Returns the entry of our parameter at a dotted path."""
  if path == 'prompt_encoder.point_embeddings':  # four embeddings of one row each in PyTorch
    names = tuple(f'{path}.{i}.weight' for i in range(4))
    return Entry(names, lambda rows: np.concatenate(rows), lambda x: list(x[:, None]))
  name, layout = release_name(path)
  return Entry((name,), lambda tensors: layout.load(tensors[0]), lambda x: [layout.save(x)])


def release_name(path: str) -> tuple[str, Layout]:
  """Returns the release's name of our parameter at a dotted path, and the change of layout."""
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
