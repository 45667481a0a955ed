"""The same model in PyTorch, to verify conversions.

Peer combines Meta's segment_anything and Hugging Face's BertModel, and implements DIT's additions (arXiv 2404.00650,
section 3). Parameters have the release's names.
"""

import importlib.util
import sys
import types
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from flax import nnx
from torch.nn import functional

from ditsam_jax.convert import names
from ditsam_jax.convert.sources import release_tensors
from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.instruction import make_instruction
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage.building import build_model

TOLERANCE = 1e-3  # larger differences are not rounding


def check_installed() -> None:
  """Raises UserError if the peer's package is missing."""
  if importlib.util.find_spec('segment_anything') is None:
    raise UserError(
      "--verify compares with the package segment-anything, which is not installed: pip install 'ditsam_jax[convert]'"
    )


def segment_anything_modeling() -> types.ModuleType:
  """Imports segment_anything.modeling without its package's __init__, which imports torchvision."""
  if 'segment_anything.modeling' in sys.modules:
    return sys.modules['segment_anything.modeling']
  package = types.ModuleType('segment_anything')
  check_installed()
  spec = importlib.util.find_spec('segment_anything')
  package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
  before = sys.modules.get('segment_anything')
  sys.modules['segment_anything'] = package
  try:
    return importlib.import_module('segment_anything.modeling')
  finally:
    del sys.modules['segment_anything']
    if before is not None:
      sys.modules['segment_anything'] = before


def attend(attention: Any, x: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
  """Runs one of SAM's attention modules on [slots, image], with relative positions between image tokens only."""
  add_decomposed_rel_pos = sys.modules['segment_anything.modeling'].image_encoder.add_decomposed_rel_pos
  batch, length, width = x.shape
  prefix, heads = length - grid[0] * grid[1], attention.num_heads
  qkv = attention.qkv(x).reshape(batch, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
  q, k, v = qkv.flatten(1, 2)  # each [B * H, N, D]
  logits = (q * attention.scale) @ k.transpose(-2, -1)
  image = add_decomposed_rel_pos(
    logits[:, prefix:, prefix:].contiguous(), q[:, prefix:], attention.rel_pos_h, attention.rel_pos_w, grid, grid
  )
  logits = torch.cat([logits[:, :prefix], torch.cat([logits[:, prefix:, :prefix], image], dim=2)], dim=1)
  out = (logits.softmax(-1) @ v).unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
  return attention.proj(out)


class Peer(torch.nn.Module):
  """DIT-SAM or plain SAM in PyTorch; `load_state_dict` accepts tensors by the release's names.

  The argument `attend(attention, x, grid)` computes a block's attention, see the function `attend`.
  """

  def __init__(self, config: DitSamConfig, attend: Callable = attend):
    super().__init__()
    if config.fusion not in SLOTS:
      raise UserError(
        f'the PyTorch peer does not implement the fusion {config.fusion!r}; add it to SLOTS in convert/torch_peer.py'
      )
    modeling = segment_anything_modeling()
    encoder, decoder, text = config.image_encoder, config.mask_decoder, config.text_encoder
    self.config, self._attend = config, attend
    self.visual_encoder = modeling.ImageEncoderViT(
      img_size=encoder.pretrain_grid * encoder.patch_size,
      patch_size=encoder.patch_size,
      embed_dim=encoder.width,
      depth=encoder.depth,
      num_heads=encoder.heads,
      mlp_ratio=encoder.mlp_ratio,
      out_chans=decoder.width,
      norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
      use_rel_pos=True,
      window_size=encoder.pretrain_window,
      global_attn_indexes=encoder.global_blocks,
    )
    self.prompt_encoder = modeling.PromptEncoder(
      decoder.width, (config.grid, config.grid), (config.image_size, config.image_size), decoder.mask_channels
    )
    self.mask_decoder = modeling.MaskDecoder(
      transformer_dim=decoder.width,
      iou_head_hidden_dim=decoder.iou_hidden,
      transformer=modeling.TwoWayTransformer(
        depth=decoder.depth, embedding_dim=decoder.width, mlp_dim=decoder.mlp_width, num_heads=decoder.heads
      ),
    )
    if text is not None:
      from transformers.models.bert.configuration_bert import BertConfig
      from transformers.models.bert.modeling_bert import BertModel

      self.lang_encoder: Any = torch.nn.Module()
      self.lang_encoder.bert = BertModel(
        BertConfig(
          vocab_size=text.vocab_size,
          hidden_size=text.width,
          num_hidden_layers=text.depth,
          num_attention_heads=text.heads,
          intermediate_size=text.mlp_width,
          max_position_embeddings=text.max_positions,
          hidden_dropout_prob=0.0,
          attention_probs_dropout_prob=0.0,
        ),
        add_pooling_layer=False,
      )
      self.text_proj = torch.nn.Linear(text.width, decoder.width)
      _add_fusion(self.visual_encoder, config)

  def double(self) -> 'Peer':
    """Converts all but the prompt encoder, which casts to f32 internally, to float64."""
    super().double()
    self.prompt_encoder.float()
    return self

  def forward(
    self,
    images: torch.Tensor,
    token_ids: torch.Tensor | None = None,
    token_mask: torch.Tensor | None = None,
    *,
    points: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    boxes: torch.Tensor | None = None,
  ) -> dict[str, torch.Tensor]:
    """Returns the stages by name, with the shapes of our Output. images: [B, 3, S, S]; for the rest see DitSam."""
    text = None
    if token_ids is not None:
      text = self.lang_encoder.bert(token_ids, attention_mask=token_mask).last_hidden_state
    embedding = self.embed(images, text)
    prompts = (points, labels) if points is not None else None
    sparse = self.prompt_encoder(prompts, boxes, None)[0].to(embedding.dtype)
    if text is not None:
      sparse = torch.cat([sparse.expand(len(images), -1, -1), self.text_proj(text)], dim=1)
    size = embedding.shape[-2:]
    dense = self.prompt_encoder.no_mask_embed.weight.to(embedding).reshape(1, -1, 1, 1).expand(len(images), -1, *size)
    pe = self.prompt_encoder.pe_layer(size)[None].to(embedding)
    # Meta's decoder repeats one embedding for all prompts; here each prompt has its own image.
    parts = [
      self.mask_decoder(embedding[i : i + 1], pe, sparse[i : i + 1], dense[i : i + 1], False)
      for i in range(len(images))
    ]
    low_res, iou = (torch.cat(part) for part in zip(*parts))
    logits = functional.interpolate(
      low_res, images.shape[-2:], mode='bilinear', align_corners=self.config.align_corners
    )
    stages = {'text_features': text} if text is not None else {}
    return stages | {
      'image_embedding': embedding.permute(0, 2, 3, 1),
      'low_res_logits': low_res[:, 0],
      'iou': iou[:, 0],
      'logits': logits[:, 0],
    }

  def embed(self, images: torch.Tensor, text: torch.Tensor | None) -> torch.Tensor:
    """Encodes images [B, 3, S, S], with text features [B, T, Ct] or alone: [B, C, h, w]."""
    encoder = self.visual_encoder
    if self.config.image_encoder.attention_scope == 'windowed':
      return encoder(images)
    x = encoder.patch_embed(images)
    batch, h, w, width = x.shape
    position = encoder.pos_embed
    if position.shape[1:3] != (h, w):
      position = functional.interpolate(position.permute(0, 3, 1, 2), (h, w), mode='bicubic').permute(0, 2, 3, 1)
    x = (x + position).reshape(batch, h * w, width)
    slots_of = SLOTS[self.config.fusion] if text is not None else None
    slots = x[:, :0]
    for i, block in enumerate(encoder.blocks):
      if slots_of is not None:
        slots = slots_of(_Weights(encoder), i, text, slots)
      x = torch.cat([slots, x], dim=1)
      x = x + self._attend(block.attn, block.norm1(x), (h, w))
      x = x + block.mlp(block.norm2(x))
      slots, x = x[:, : slots.shape[1]], x[:, slots.shape[1] :]
    return encoder.neck(x.reshape(batch, h, w, width).permute(0, 3, 1, 2))


class _Weights(NamedTuple):
  """The fusion's parameters in an encoder, by the release's names."""

  encoder: torch.nn.Module

  def __getitem__(self, name: str) -> torch.Tensor:
    return self.encoder.get_parameter(name)

  def linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, self[f'{name}.weight'], self[f'{name}.bias'])


def _cross_attention(w: _Weights, i: int, y: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
  """The projected text plus attention over the slots (8 heads of 64), under the release's norm."""
  projected = w.linear(f'probs.{i}', y)
  if i == 0:
    return projected
  q, k, v = (
    w.linear(f'cross.{i - 1}.linear_{part}', x).unflatten(-1, (8, 64)).transpose(1, 2)
    for part, x in (('q', y), ('k', s), ('v', s))
  )
  attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
  mixed = projected + w.linear(f'cross.{i - 1}.linear_merge', attended)
  std = mixed.std(-1, keepdim=True)  # n - 1
  normed = (mixed - mixed.mean(-1, keepdim=True)) / (std + 1e-6)
  return w[f'ln.{i - 1}.weight'] * normed + w[f'ln.{i - 1}.bias']


# The slots before block i, by fusion: functions of weights, i, text features y, and the slots s after block i-1.
SLOTS = {
  'none': None,
  'layer_wise': lambda w, i, y, s: w.linear(f'probs.{i}', y),
  'layer_wise_vith': lambda w, i, y, s: w.linear(f'probs.{i}', w.linear('prob_text', y)),
  'e2e': lambda w, i, y, s: w.linear(f'probs.{i}', y if i == 0 else s),
  'e2e_token': lambda w, i, y, s: w.linear('probs', y) if i == 0 else s + w['tokens'][i - 1],
  'token_layer_wise': lambda w, i, y, s: y + w['tokens'][i],
  'cross_attention': _cross_attention,
}


def _add_fusion(encoder: torch.nn.Module, config: DitSamConfig) -> None:
  """Adds a fusion's parameters to SAM's encoder, named and shaped by the table of names, with small random values."""
  instruction = nnx.eval_shape(lambda: make_instruction(config.fusion, config.fusion_sizes, rngs=nnx.Rngs(0)))
  for path, variable in weights_of(instruction).items() if instruction is not None else ():
    entry = names.entry(f'image_encoder.instruction.{path}')
    for name, part in zip(entry.names, entry.save(np.broadcast_to(np.float32(0), variable.shape))):
      *modules, last = name.removeprefix('visual_encoder.').split('.')
      owner = encoder
      for module in modules:
        if not hasattr(owner, module):
          owner.add_module(module, torch.nn.Module())
        owner = getattr(owner, module)
      owner.register_parameter(last, torch.nn.Parameter(0.02 * torch.randn(part.shape)))


def random_inputs(config: DitSamConfig, batch: int = 1) -> dict[str, np.ndarray]:
  """Creates inputs for DitSam: noise images, and padded sentences or, for a plain SAM, points and boxes."""
  rng = np.random.default_rng(0)
  size = config.image_size
  inputs = dict(images=rng.normal(size=(batch, size, size, 3)).astype(np.float32))
  if config.text_encoder is None:
    points = rng.uniform(0, size, (batch, 3, 2)).astype(np.float32)
    corners = np.sort(rng.uniform(0, size, (batch, 2, 2)), axis=1).reshape(batch, 4).astype(np.float32)
    return inputs | dict(points=points, point_labels=np.tile([1, 0, 1], (batch, 1)), boxes=corners)
  tokens = config.max_text_tokens
  lengths = rng.integers(2, tokens + 1, (batch, 1))
  mask = (np.arange(tokens) < lengths).astype(np.int64)
  return inputs | dict(
    token_ids=rng.integers(1, config.text_encoder.vocab_size, (batch, tokens)) * mask, token_mask=mask
  )


def run_peer(peer: torch.nn.Module, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Runs a peer on DitSam's inputs; returns its stages by name."""
  given = {
    {'point_labels': 'labels'}.get(name, name): torch.from_numpy(np.array(value)) for name, value in inputs.items()
  }
  given['images'] = given['images'].permute(0, 3, 1, 2).to(next(peer.parameters()).dtype)
  with torch.no_grad():
    return {name: stage.numpy() for name, stage in peer(**given).items()}


def run_ours(model: DitSam, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Runs our model; returns the same stages by name."""
  graph, state = nnx.split(model)
  out = jax.jit(lambda state, inputs: nnx.merge(graph, state)(**inputs))(state, inputs)
  return {name: np.asarray(stage) for name, stage in out._asdict().items() if stage is not None}


def relative_differences(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> dict[str, float]:
  """The largest absolute difference divided by the largest absolute value, by stage."""
  return {
    name: float(np.abs(ours[name] - expected).max() / np.abs(expected).max()) for name, expected in theirs.items()
  }


def compare(tensors: dict[str, torch.Tensor], config: DitSamConfig, weights: dict[str, np.ndarray]) -> str:
  """Compares a converted model with PyTorch's on random inputs.

  Args:
    tensors: the source tensors, by the release's names; a fresh fusion is taken from `weights`.
    config: the model's config.
    weights: the converted weights, by dotted path.

  Returns:
    One line per stage.

  Raises:
    UserError: a difference is too large to be rounding.
  """
  if config.image_encoder.attention_scope == 'windowed' and config.grid != config.image_encoder.pretrain_grid:
    raise UserError(
      f'--verify compares a plain SAM at its own size only, {config.image_encoder.pretrain_grid} tokens a '
      f'side; omit --image-size'
    )
  model = build_model(config, weights, 'the converted model')
  peer = Peer(config).eval()
  tensors = release_tensors(weights) | tensors
  peer.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, strict=True)
  inputs = random_inputs(config)
  differences = relative_differences(run_ours(model, inputs), run_peer(peer, inputs))
  lines = [f'  {name:16} {difference:.1e}' for name, difference in differences.items()]
  text = '\n'.join(['largest difference from PyTorch, relative to the largest value:', *lines])
  if not all(difference <= TOLERANCE for difference in differences.values()):  # also catches NaN
    print(text)
    raise UserError(f'the converted model differs from PyTorch (by more than {TOLERANCE:.0e}); nothing was written')
  return text
