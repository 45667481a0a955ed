"""Hugging Face's SamModel: reads settings from config.json that tensor shapes lack, and writes such folders."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditsam_jax.convert import names
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.storage import safetensors_file
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

if TYPE_CHECKING:
  import torch

WEIGHTS = 'model.safetensors'
FILES = ('config.json', WEIGHTS, 'preprocessor_config.json')
_MARK = 'ditsam_jax'  # in the metadata of WEIGHTS, so that a model that is trained further and saved again has none

# Settings that must have a certain value to match our model: part ('' for the top level), field, value.
_SAM = (
  ('vision_config', 'hidden_act', 'gelu'),
  ('vision_config', 'layer_norm_eps', 1e-6),
  ('vision_config', 'qkv_bias', True),
  ('vision_config', 'use_abs_pos', True),
  ('vision_config', 'use_rel_pos', True),
  ('mask_decoder_config', 'hidden_act', 'relu'),
  ('mask_decoder_config', 'attention_downsample_rate', 2),
  ('mask_decoder_config', 'num_multimask_outputs', 3),
  ('prompt_encoder_config', 'hidden_act', 'gelu'),
)
_BERT = (
  ('', 'model_type', 'bert'),
  ('', 'hidden_act', 'gelu'),
  ('', 'layer_norm_eps', 1e-12),
  ('', 'position_embedding_type', 'absolute'),
  ('', 'is_decoder', False),
)


def decoder_heads(weights: Path) -> int | None:
  """Heads of a SamModel's mask decoder; None without a config.json. Raises UserError for an unsupported SAM."""
  config = _config(weights)
  if config.get('model_type') != 'sam' and 'mask_decoder_config' not in config:
    return None  # another model's config, such as BERT's
  _check(weights, config, _SAM)
  return _heads(weights, config, 'mask_decoder_config')


def text_heads(weights: Path) -> int | None:
  """Heads of a BertModel; None without a config.json. Raises UserError for an unsupported model."""
  config = _config(weights)
  _check(weights, config, _BERT)
  return _heads(weights, config, '')


def config_file(weights: Path) -> Path:
  """The path of config.json for a weights file or folder."""
  return (weights if weights.is_dir() else weights.parent) / 'config.json'


def _config(weights: Path) -> dict[str, Any]:
  file = config_file(weights)
  content = read_json(file) if file.exists() else {}
  return content if isinstance(content, dict) else {}


def _part(config: dict[str, Any], part: str) -> dict[str, Any]:
  fields = config.get(part, {}) if part else config
  return fields if isinstance(fields, dict) else {}


def _check(weights: Path, config: dict[str, Any], expected: tuple[tuple[str, str, Any], ...]) -> None:
  for part, field, value in expected:
    given = _part(config, part).get(field, value)
    if given != value:
      raise UserError(
        f'{printable(config_file(weights))} says {part + "." if part else ""}{field} is {printable(repr(given))}; '
        f'only {value!r} is supported'
      )


def _heads(weights: Path, config: dict[str, Any], part: str) -> int | None:
  heads = _part(config, part).get('num_attention_heads')
  if heads is not None and (type(heads) is not int or not 1 <= heads <= 2**14):
    raise UserError(
      f'{printable(config_file(weights))} says num_attention_heads is {printable(repr(heads))}; expected a whole number'
    )
  return heads


def write_sam(folder: Path, config: DitSamConfig, tensors: 'dict[str, torch.Tensor]') -> None:
  """Writes config.json, model.safetensors and preprocessor_config.json of a plain SAM, as transformers saves them.

  `is_export` recognises the folder.

  Args:
    folder: an existing folder.
    config: the model's config.
    tensors: by the release's names, with positions of the model's own grid.
  """
  import torch
  from safetensors.torch import save_file
  from transformers.models.sam.modeling_sam import SamModel  # pyright reads the package's index for 10 s

  with torch.device('meta'):
    model = SamModel(_sam_config(config))
  content = {name: tensors[str(names.renamed(name, 'hugging_face'))] for name in model.state_dict()}
  model.load_state_dict(content, strict=True, assign=True)
  model.save_pretrained(folder)
  stored = safetensors_file.shapes_and_types(folder / WEIGHTS)  # tied weights are stored once
  save_file({name: content[name].contiguous() for name in stored}, folder / WEIGHTS, {'format': 'pt', _MARK: 'export'})
  (folder / 'preprocessor_config.json').write_text(json.dumps(_preprocessing(config), indent=2) + '\n')


def is_export(folder: Path) -> bool:
  """Whether `write_sam` wrote the weights in a folder."""
  try:
    return _MARK in safetensors_file.metadata(folder / WEIGHTS)
  except UserError:
    return False


def _sam_config(config: DitSamConfig) -> Any:
  from transformers.models.sam.configuration_sam import (
    SamConfig,
    SamMaskDecoderConfig,
    SamPromptEncoderConfig,
    SamVisionConfig,
  )

  encoder, decoder = config.image_encoder, config.mask_decoder
  vision = SamVisionConfig(
    hidden_size=encoder.width,
    output_channels=decoder.width,
    num_hidden_layers=encoder.depth,
    num_attention_heads=encoder.heads,
    image_size=config.image_size,
    patch_size=encoder.patch_size,
    window_size=encoder.pretrain_window,
    global_attn_indexes=[i for i in range(encoder.depth) if not encoder.window(i)],
    mlp_dim=encoder.mlp_ratio * encoder.width,
    num_pos_feats=decoder.width // 2,
  )
  prompts = SamPromptEncoderConfig(
    hidden_size=decoder.width,
    image_size=config.image_size,
    patch_size=encoder.patch_size,
    mask_input_channels=decoder.mask_channels,
  )
  masks = SamMaskDecoderConfig(
    hidden_size=decoder.width,
    mlp_dim=decoder.mlp_width,
    num_hidden_layers=decoder.depth,
    num_attention_heads=decoder.heads,
    iou_head_hidden_dim=decoder.iou_hidden,
  )
  return SamConfig(
    vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(), mask_decoder_config=masks.to_dict()
  )


def _preprocessing(config: DitSamConfig) -> dict[str, Any]:
  """The settings of SamImageProcessor."""
  side = config.image_size
  return {
    'image_processor_type': 'SamImageProcessor',
    'processor_class': 'SamProcessor',
    'do_convert_rgb': True,
    'do_resize': True,
    'do_rescale': True,
    'do_normalize': True,
    'do_pad': True,
    'size': {'longest_edge': side},
    'pad_size': {'height': side, 'width': side},
    'mask_size': {'longest_edge': 4 * config.grid},
    'mask_pad_size': {'height': 4 * config.grid, 'width': 4 * config.grid},
    'resample': 2,
    'rescale_factor': 1 / 255,
    'image_mean': list(config.pixel_mean),
    'image_std': list(config.pixel_std),
  }
