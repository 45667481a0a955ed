"""Model FLOPs, independent of the implementation: the numerator of MFU.

Counts matrix products and convolutions only, with two FLOPs per multiply-add. Recomputation, padding, one-hot channels,
resizing of images and tables, and elementwise operations are not counted.
"""

from ditsam_jax.models.config import DitSamConfig, TextEncoderConfig
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.models.layers import attention_flops, linear_flops
from ditsam_jax.models.mask_decoder import MASK_TOKENS


def forward_flops(config: DitSamConfig, *, prompts: int = 1, prompt_tokens: int | None = None) -> dict[str, int]:
  """FLOPs of one image's forward pass, by part.

  Args:
    config: the model's config; images have its `image_size`.
    prompts: number of prompts to decode, one mask each.
    prompt_tokens: sparse tokens per prompt; None for a sentence of `max_text_tokens`.
  """
  text = config.max_text_tokens if prompt_tokens is None else 0
  parts = {
    'image_encoder': _image_encoder(config, text),
    'mask_decoder': prompts * _mask_decoder(config, text if prompt_tokens is None else prompt_tokens),
  }
  if text:
    assert config.text_encoder is not None  # sentences require a text encoder
    parts['text_encoder'] = _text_encoder(config.text_encoder, text)
    parts['text_proj'] = 2 * text * config.text_encoder.width * config.mask_decoder.width
    parts['instruction'] = FUSIONS[config.fusion].flops(config.fusion_sizes)
  return parts


def training_flops(config: DitSamConfig, **prompts) -> int:
  """FLOPs of one image in a training step: the backward pass has two products for each one of the forward pass.

  For `prompts` see `forward_flops`. Frozen parts are counted as if they were trained.
  """
  return 3 * sum(forward_flops(config, **prompts).values())


def _image_encoder(config: DitSamConfig, text: int) -> int:
  encoder, tokens, grid = config.image_encoder, config.grid**2, config.grid
  width = encoder.width
  flops = linear_flops(tokens, 3 * encoder.patch_size**2, width)
  slots = text if config.encodes_text_with_image else 0
  for block in range(encoder.depth):
    window = encoder.window(block)
    windows = (-(-grid // window)) ** 2 if window else 1
    side = window or grid
    rows = slots + windows * side**2  # padded to whole windows
    flops += linear_flops(rows, width, 3 * width) + linear_flops(rows, width, width)
    flops += windows * attention_flops(slots + side**2, slots + side**2, width)
    flops += windows * 2 * (2 * side**3 * width)  # relative positions: each query with its rows and columns
    flops += linear_flops(slots + tokens, width, encoder.mlp_ratio * width, width)
  out = config.mask_decoder.width
  return flops + linear_flops(tokens, width, out) + 9 * linear_flops(tokens, out, out)


def _text_encoder(encoder: TextEncoderConfig, text: int) -> int:
  width = encoder.width
  attention = 4 * linear_flops(text, width, width) + attention_flops(text, text, width)
  return encoder.depth * (attention + linear_flops(text, width, encoder.mlp_width, width))


def _mask_decoder(config: DitSamConfig, prompt_tokens: int) -> int:
  decoder, image = config.mask_decoder, config.grid**2
  width, inner, tokens = decoder.width, decoder.width // 2, 1 + MASK_TOKENS + prompt_tokens
  # Cross-attention costs the same in both directions: two projections on each side.
  cross = 2 * (linear_flops(tokens, width, inner) + linear_flops(image, width, inner)) + attention_flops(
    tokens, image, inner
  )
  self_attention = 4 * linear_flops(tokens, width, width) + attention_flops(tokens, tokens, width)
  mlp = linear_flops(tokens, width, decoder.mlp_width, width)
  flops = decoder.depth * (self_attention + 2 * cross + mlp) + cross
  flops += linear_flops(image, width, width) + linear_flops(4 * image, width // 4, width // 2)  # two upscaling layers
  flops += linear_flops(1, width, width, width, width // 8) + linear_flops(
    1, width, decoder.iou_hidden, decoder.iou_hidden, MASK_TOKENS
  )
  return flops + 2 * 16 * image * width // 8
