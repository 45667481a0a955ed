"""Small PyTorch models with random weights, and their checkpoint files."""

import functools
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditsam_jax.convert.torch_peer import Peer
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, TextEncoderConfig
from tests.small_models import SAM

TEXT = TextEncoderConfig(vocab_size=30, width=24, depth=2, heads=3, mlp_width=40, max_positions=32)
SAM_FLAGS = ['--decoder-heads=4']
TEXT_FLAGS = ['--decoder-heads=4', '--text-heads=3', '--image-size=64']


def text_config(fusion: str) -> DitSamConfig:
  """Returns the config of a small text model; its image size differs from pre-training, so positions are resized."""
  width = 32 if fusion == 'layer_wise_vith' else 24
  encoder = ImageEncoderConfig(width=width, depth=3, heads=2, global_blocks=(1,), pretrain_grid=5, pretrain_window=3)
  return DitSamConfig(encoder, SAM.mask_decoder, TEXT, fusion=fusion, image_size=64)


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Fills a module with random values, because zeros and ones could hide mistakes."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for name, tensor in module.state_dict().items():
      if not tensor.is_floating_point():
        continue
      noise = torch.randn(tensor.shape, generator=generator)
      if tensor.ndim == 1:
        tensor.copy_((1.0 if name.endswith('weight') else 0.0) + 0.3 * noise)  # norms and biases
      else:
        embedding = tensor.shape[0] == 1 or any(
          part in name for part in ('_token.', 'tokens', 'gaussian', 'positional')
        )
        tensor.copy_(noise * (1.0 if embedding else tensor[0].numel() ** -0.5))
  return module.eval()


def random_peer(config: DitSamConfig, seed: int = 0) -> Peer:
  """Creates the PyTorch model of a config, with random weights."""
  return randomise(Peer(config), seed)


def weights_of_peer(peer: Peer) -> dict[str, torch.Tensor]:
  """Returns a copy of the tensors, by the release's names."""
  return {name: tensor.clone() for name, tensor in peer.state_dict().items()}


def meta_sam(config: DitSamConfig, modeling: types.ModuleType) -> Any:
  """Creates Meta's Sam for the config of a plain SAM; `modeling` is segment_anything.modeling."""
  encoder, decoder = config.image_encoder, config.mask_decoder
  return modeling.Sam(
    modeling.ImageEncoderViT(
      img_size=config.image_size,
      patch_size=encoder.patch_size,
      embed_dim=encoder.width,
      mlp_ratio=encoder.mlp_ratio,
      depth=encoder.depth,
      num_heads=encoder.heads,
      out_chans=decoder.width,
      use_rel_pos=True,
      norm_layer=functools.partial(torch.nn.LayerNorm, eps=1e-6),
      window_size=encoder.pretrain_window,
      global_attn_indexes=encoder.global_blocks,
    ),
    modeling.PromptEncoder(decoder.width, (config.grid,) * 2, (config.image_size,) * 2, decoder.mask_channels),
    modeling.MaskDecoder(
      transformer_dim=decoder.width,
      iou_head_hidden_dim=decoder.iou_hidden,
      transformer=modeling.TwoWayTransformer(
        depth=decoder.depth, embedding_dim=decoder.width, mlp_dim=decoder.mlp_width, num_heads=decoder.heads
      ),
    ),
    pixel_mean=[255 * value for value in config.pixel_mean],
    pixel_std=[255 * value for value in config.pixel_std],
  ).eval()


def save_meta(peer: Peer, path: Path) -> dict[str, torch.Tensor]:
  """Writes a plain SAM in Meta's format; returns the tensors written."""
  tensors = {
    name.replace('visual_encoder.', 'image_encoder.'): tensor for name, tensor in weights_of_peer(peer).items()
  }
  torch.save(tensors, path)
  return tensors


def save_release(tensors: dict[str, torch.Tensor], path: Path, prefix: str = 'module.') -> None:
  """Writes a training checkpoint in the release's format."""
  torch.save(
    {
      'epoch': 7,
      'state_dict': {prefix + name: tensor for name, tensor in tensors.items()},
      'optimizer': {},
      'scheduler': {},
      'lr': 1e-5,
    },
    path,
  )


def hugging_face_sam(config: DitSamConfig = SAM, seed: int = 0) -> torch.nn.Module:
  """Creates a transformers.SamModel for the config of a plain SAM."""
  from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

  encoder, decoder = config.image_encoder, config.mask_decoder
  vision = SamVisionConfig(
    hidden_size=encoder.width,
    output_channels=decoder.width,
    num_hidden_layers=encoder.depth,
    num_attention_heads=encoder.heads,
    image_size=config.image_size,
    patch_size=encoder.patch_size,
    window_size=encoder.pretrain_window,
    global_attn_indexes=list(encoder.global_blocks),
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
  model = SamModel(
    SamConfig(
      vision_config=vision.to_dict(), prompt_encoder_config=prompts.to_dict(), mask_decoder_config=masks.to_dict()
    )
  )
  return randomise(model, seed)


def bert(seed: int = 0) -> torch.nn.Module:
  """Creates a transformers.BertModel with its pooler."""
  from transformers import BertConfig, BertModel

  return randomise(
    BertModel(
      BertConfig(
        vocab_size=TEXT.vocab_size,
        hidden_size=TEXT.width,
        num_hidden_layers=TEXT.depth,
        num_attention_heads=TEXT.heads,
        intermediate_size=TEXT.mlp_width,
        max_position_embeddings=TEXT.max_positions,
      )
    ),
    seed,
  )


def as_numpy(tensors: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
  """Converts tensors to NumPy arrays."""
  return {name: tensor.numpy() for name, tensor in tensors.items()}
