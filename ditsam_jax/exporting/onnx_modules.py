"""The programs of an ONNX export as PyTorch modules, made of the parts of `convert.torch_peer`.

The decoder has the inputs, outputs and meaning of the ONNX model in Meta's segment_anything 1.0 (`SamOnnxModel`).
"""

import math

import torch

from ditsam_jax.convert.torch_peer import Peer
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.mask_decoder import MASK_TOKENS
from ditsam_jax.ops.resize import resize_matrix


class TextEncoder(torch.nn.Module):
  """Token ids and 0/1 mask [B, T] -> text features [B, T, Ct]."""

  def __init__(self, peer: Peer):
    super().__init__()
    self.bert = peer.lang_encoder.bert
    self.bert.set_attn_implementation('eager')  # traces to plain products

  def forward(self, token_ids: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
    return self.bert(token_ids, attention_mask=token_mask).last_hidden_state


class ImageEncoder(torch.nn.Module):
  """Images [B, 3, S, S], text features [B, T, Ct] if the fusion uses them -> embeddings [B, C, h, w]. T may be 0."""

  def __init__(self, peer: Peer):
    super().__init__()
    self.peer = peer

  def forward(self, images: torch.Tensor, text_features: torch.Tensor | None = None) -> torch.Tensor:
    return self.peer.embed(images, text_features)


class Decoder(torch.nn.Module):
  """Prompts -> masks; see `forward`."""

  upscaling: torch.Tensor  # a buffer

  def __init__(self, peer: Peer, all_masks: bool):
    """Takes the parts of a peer. `all_masks`: return all four masks, as Meta's export without --return-single-mask."""
    super().__init__()
    config = peer.config
    self.config, self.all_masks, self.text = config, all_masks, config.text_encoder is not None
    self.prompt_encoder, self.mask_decoder = peer.prompt_encoder, peer.mask_decoder
    self.text_proj = peer.text_proj if self.text else None
    embeddings = [embedding.weight for embedding in self.prompt_encoder.point_embeddings]
    self.point_embeddings = torch.nn.Parameter(torch.cat([self.prompt_encoder.not_a_point_embed.weight, *embeddings]))
    self.register_buffer('image_pe', self.prompt_encoder.get_dense_pe().detach())
    upscaling = resize_matrix(4 * config.grid, config.image_size, 'linear', config.align_corners)
    self.register_buffer('upscaling', torch.from_numpy(upscaling))

  def forward(
    self,
    image_embeddings: torch.Tensor,
    point_coords: torch.Tensor,
    point_labels: torch.Tensor,
    mask_input: torch.Tensor,
    has_mask_input: torch.Tensor,
    orig_im_size: torch.Tensor,
    text_features: torch.Tensor | None = None,
  ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Decodes N prompts.

    Args:
      image_embeddings: [1, C, h, w] of the image of all prompts; models with a text encoder: [N, C, h, w].
      point_coords: [N, P, 2], (x, y) in pixels of the model's square. P may be 0 in models with a text encoder.
      point_labels: f32 [N, P]: -1 padding, 0 negative, 1 positive, 2 and 3 corners of a box.
      mask_input: mask logits [1, 1, 4h, 4w]; models with a text encoder: [N, 1, 4h, 4w].
      has_mask_input: f32 [1], 1 to use mask_input and 0 to ignore it.
      orig_im_size: f32 [2], height and width of the image.
      text_features: [N, T, Ct], T may be 0; models with a text encoder only.

    Returns:
      masks: logits [N, M, height, width] at the image's size.
      iou_predictions: [N, M].
      low_res_masks: logits [N, M, 4h, 4w] of the model's square.
    """
    sparse = self._points(point_coords, point_labels)
    if text_features is not None:
      assert self.text_proj is not None  # see __init__
      sparse = torch.cat([sparse, self.text_proj(text_features)], dim=1)
    low_res, iou = self._decode(image_embeddings + self._dense(mask_input, has_mask_input), sparse)
    low_res, iou = self._select(low_res, iou, point_labels)
    rows, columns = (self._resizing(orig_im_size, axis) for axis in (0, 1))
    return rows @ low_res @ columns.T, iou, low_res

  def _points(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Meta's `_embed_points`: [N, P, C]. Padding points lose their position."""
    matrix = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    angles = 2 * math.pi * ((2 * ((coords + 0.5) / self.config.image_size) - 1) @ matrix)
    encoded = torch.cat([angles.sin(), angles.cos()], dim=-1)
    classes = torch.arange(-1, 4, dtype=labels.dtype)
    one_hot = (labels[..., None] == classes).to(encoded.dtype)  # an unknown label adds nothing, as in Meta's
    return encoded * (labels[..., None] != -1) + one_hot @ self.point_embeddings

  def _dense(self, mask: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
    none = self.prompt_encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
    return given * self.prompt_encoder.mask_downscaling(mask) + (1 - given) * none

  def _decode(self, image: torch.Tensor, sparse: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Meta's `predict_masks`, for images [1 or N, C, h, w]: all masks [N, 4, 4h, 4w] and their predicted IoU [N, 4]."""
    decoder, prompts = self.mask_decoder, sparse.shape[0]
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(prompts, -1, -1), sparse], dim=1)
    if not self.text:
      image = image.expand(prompts, -1, -1, -1)
    tokens, image = decoder.transformer(image, self.image_pe, tokens)
    side, width = self.config.grid, self.config.mask_decoder.width
    image = decoder.output_upscaling(image.transpose(1, 2).reshape(prompts, width, side, side))
    heads = decoder.output_hypernetworks_mlps
    hyper = torch.stack([head(tokens[:, 1 + i]) for i, head in enumerate(heads)], dim=1)
    masks = (hyper @ image.flatten(2)).reshape(prompts, MASK_TOKENS, 4 * side, 4 * side)
    return masks, decoder.iou_prediction_head(tokens[:, 0])

  def _select(self, masks: torch.Tensor, iou: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The returned masks: all, or one per prompt.

    Plain SAM selects as Meta's `select_masks`: the single mask if there are three points or more, padding included,
    else the best of three for ambiguous prompts. Models with a text encoder return the single mask, which they train.
    """
    if self.all_masks:
      return masks, iou
    if self.text:
      return masks[:, :1], iou[:, :1]
    count = torch.ones_like(labels).sum(1, keepdim=True)
    single = torch.zeros(MASK_TOKENS)
    single[0] = 1000
    best = (iou + (count - 2.5) * single).argmax(1)
    chosen = torch.nn.functional.one_hot(best, MASK_TOKENS).to(iou.dtype)  # [N, 4]
    return torch.einsum('nm,nmyx->nyx', chosen, masks)[:, None], (chosen * iou).sum(1, keepdim=True)

  def _resizing(self, size: torch.Tensor, axis: int) -> torch.Tensor:
    """The matrix [own, 4h] that resizes an axis of low-resolution logits to the image, without the square's padding.

    Bilinear interpolation with edges repeated, as `interpolate` and OpenCV do it: logits to square, square to image.
    """
    square = self.config.image_size
    start, length = _placement(self.config, size.double(), axis)
    own = size[axis].long().item()
    torch._check(own >= 1)  # how torch.export learns bounds of a size that it reads from a tensor
    position = (torch.arange(own) + 0.5) * (length / size[axis].double()) - 0.5
    position = start + torch.minimum(position.clamp(min=0), length - 1)
    distance = (position[:, None] - torch.arange(square, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0).float() @ self.upscaling


def _placement(config: DitSamConfig, size: torch.Tensor, axis: int) -> tuple[torch.Tensor | int, torch.Tensor]:
  """Start and length of the image in the square, along an axis.

  As in `geometry.letterbox` for models with a text encoder. Plain SAM's formula is Meta's `resize_longest_image_size`,
  in f32 there, too. Very long images keep at least one pixel; Meta's program fails on them.
  """
  square = config.image_size
  if config.text_encoder is None:
    single = size.float()
    return 0, torch.floor((square / single.max()) * single[axis] + 0.5).double().clamp(min=1)
  length = torch.round(size[axis] * (square / size.max())).clamp(min=1)
  return torch.round((square - length) / 2 - 0.1), length


def prepare(peer: Peer) -> None:
  """Resizes the position tables to the model's grid once, instead of at every call."""
  config, encoder = peer.config, peer.visual_encoder
  if config.image_encoder.attention_scope == 'windowed':
    return
  grid = config.grid
  with torch.no_grad():
    position = encoder.pos_embed.permute(0, 3, 1, 2)
    if position.shape[-1] != grid:
      position = torch.nn.functional.interpolate(position, (grid, grid), mode='bicubic')
    encoder.pos_embed = torch.nn.Parameter(position.permute(0, 2, 3, 1).contiguous())
    for block in encoder.blocks:
      for name in ('rel_pos_h', 'rel_pos_w'):
        table = getattr(block.attn, name)
        if len(table) != 2 * grid - 1:
          table = torch.from_numpy(resize_matrix(len(table), 2 * grid - 1, 'linear')) @ table
        setattr(block.attn, name, torch.nn.Parameter(table))
