"""Settings from Hugging Face's config.json that tensor shapes lack."""

from pathlib import Path
from typing import Any

from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import read_json
from ditsam_jax.terminal import printable

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
