"""Model configs: dataclasses, presets, and their JSON form."""

import dataclasses
from typing import Any

from ditsam_jax.fields import BELOW_ONE, Choice, Flag, Real, Several, Whole, check, declared, group, read
from ditsam_jax.models.instruction import FUSIONS, Sizes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCOPES = ('global', 'windowed')
MOST_TOKENS_A_SIDE = 512  # image tokens per side; SAM has 64

_WIDTH = Whole(1, 8192)  # ViT-22B has 6144
_DEPTH = Whole(1, 128)
_HEADS = Whole(1, 256)
_HIDDEN = Whole(1, 32768)


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
  """SAM's ViT (arXiv 2304.02643, appendix A)."""

  width: int = declared(768, _WIDTH, 'Channels of a token')
  depth: int = declared(12, _DEPTH, 'Blocks')
  heads: int = declared(12, _HEADS, 'Attention heads; must divide the width')
  patch_size: int = declared(16, Whole(1, 256), 'Side of the square of pixels that becomes a token')
  mlp_ratio: int = declared(4, Whole(1, 64), 'Hidden width of the MLPs, as a multiple of the width')
  global_blocks: tuple[int, ...] = declared(
    (2, 5, 8, 11), Several(Whole(0, 127), 0, 128), 'Indices of blocks pre-trained with global attention'
  )
  pretrain_grid: int = declared(
    64, Whole(1, 512), 'Tokens per side of the pre-training image: size of the position embedding and global tables'
  )
  pretrain_window: int = declared(
    14, Whole(1, 512), 'Window of the other blocks in pre-training: size of their relative-position tables'
  )
  attention_scope: str = declared(
    'global', Choice(SCOPES), "Attention of those other blocks now: 'global', as in DIT, or their windows, as in SAM"
  )

  def window(self, block: int) -> int:
    """Side of a block's attention windows; 0 for global attention."""
    return 0 if self.attention_scope == 'global' or block in self.global_blocks else self.pretrain_window


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
  """SAM's prompt encoder and two-way mask decoder."""

  width: int = declared(256, _WIDTH, 'Channels of image embedding and prompts; a multiple of 8')
  depth: int = declared(2, _DEPTH, 'Two-way blocks')
  heads: int = declared(8, _HEADS, 'Attention heads; must divide half the width')
  mlp_width: int = declared(2048, _HIDDEN, 'Hidden width of the MLPs')
  iou_hidden: int = declared(256, _HIDDEN, 'Hidden width of the head that predicts IoU')
  mask_channels: int = declared(16, Whole(4, 1024), "Channels inside the mask prompt's down-scaling")


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  """BERT."""

  vocab_size: int = declared(30522, Whole(1, 1_000_000), 'Words of the vocabulary')
  width: int = declared(768, _WIDTH, 'Channels of a token')
  depth: int = declared(12, _DEPTH, 'Blocks')
  heads: int = declared(12, _HEADS, 'Attention heads; must divide the width')
  mlp_width: int = declared(3072, _HIDDEN, 'Hidden width of the MLPs')
  max_positions: int = declared(512, Whole(1, 8192), 'Longest text in tokens: size of the position table')
  dropout: float = declared(0.1, BELOW_ONE, 'Dropout in training')


@dataclasses.dataclass(frozen=True)
class DitSamConfig:
  """Config of a complete model."""

  image_encoder: ImageEncoderConfig = group(ImageEncoderConfig(), "SAM's ViT")
  mask_decoder: MaskDecoderConfig = group(MaskDecoderConfig(), "SAM's prompt encoder and mask decoder")
  text_encoder: TextEncoderConfig | None = group(TextEncoderConfig(), 'BERT', none='SAM as Meta released it')
  fusion: str = declared('layer_wise', Choice(tuple(FUSIONS)), 'How text enters the image encoder')
  fusion_dropout: float = declared(0.1, BELOW_ONE, 'Dropout after each projection of the text, in training')
  image_size: int = declared(512, Whole(1, 8192), 'Side of the square input image; a multiple of the patch size')
  pixel_mean: tuple[float, float, float] = declared(
    IMAGENET_MEAN, Several(Real(0, 1), 3, 3), 'Subtracted from red, green and blue, on a scale of 0 to 1'
  )
  pixel_std: tuple[float, float, float] = declared(
    IMAGENET_STD, Several(Real(0.001, 10), 3, 3), 'Red, green and blue are then divided by this'
  )
  max_text_tokens: int = declared(20, Whole(3, 8192), 'Tokens kept per sentence, including [CLS] and [SEP]')
  mask_threshold: float = declared(
    0.35, Real(0, 1, above=True, below=True), 'Probability above which a pixel belongs to the mask'
  )
  align_corners: bool = declared(
    True, Flag(), 'Upsample logits to the image with aligned corners, as in DIT; False in SAM'
  )

  def __post_init__(self):
    check(self, 'model')
    encoder = self.image_encoder
    if self.image_size % encoder.patch_size:
      raise ValueError(
        f'model.image_size is {self.image_size}; expected a multiple of the patch size {encoder.patch_size}'
      )
    if self.grid > MOST_TOKENS_A_SIDE:
      raise ValueError(
        f'model.image_size is {self.image_size}, {self.grid} patches of {encoder.patch_size} per side; expected at '
        f'most {MOST_TOKENS_A_SIDE}'
      )
    for name, width, heads in (
      ('image_encoder', encoder.width, encoder.heads),
      ('mask_decoder', self.mask_decoder.width // 2, self.mask_decoder.heads),
      *([('text_encoder', self.text_encoder.width, self.text_encoder.heads)] if self.text_encoder else []),
    ):
      if width % heads:
        raise ValueError(
          f'model.{name}: {heads} heads do not divide the attention width {width}; change '
          f'model.{name}.heads or model.{name}.width'
        )
    if self.text_encoder and self.max_text_tokens > self.text_encoder.max_positions:
      raise ValueError(
        f'model.max_text_tokens is {self.max_text_tokens}; the text encoder has '
        f'{self.text_encoder.max_positions} positions'
      )
    if self.mask_decoder.width % 8:
      raise ValueError(f'model.mask_decoder.width is {self.mask_decoder.width}; expected a multiple of 8')
    FUSIONS[self.fusion].check(self.fusion_sizes)

  @property
  def grid(self) -> int:
    """Image tokens per side."""
    return self.image_size // self.image_encoder.patch_size

  @property
  def encodes_text_with_image(self) -> bool:
    """Whether the image encoder reads the text; if not, all sentences share an image's embedding."""
    return FUSIONS[self.fusion].has_slots

  @property
  def fusion_sizes(self) -> Sizes:
    """The model sizes that the fusion needs."""
    encoder, text = self.image_encoder, self.text_encoder
    text_width = text.width if text else None
    return Sizes(encoder.width, encoder.depth, text_width, self.max_text_tokens, self.fusion_dropout)

  @property
  def heads(self) -> dict[str, int]:
    """Attention heads of each encoder."""
    parts = {'image_encoder': self.image_encoder, 'text_encoder': self.text_encoder}
    return {name: part.heads for name, part in parts.items() if part is not None}

  def to_dict(self) -> dict[str, Any]:
    """Converts the config to plain containers for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: Any) -> 'DitSamConfig':
    """The inverse of `to_dict`, also from JSON. Raises ValueError for unknown fields and invalid values."""
    if isinstance(fields, dict) and fields.get('attention') == 'auto':  # a field of models saved by earlier versions
      fields = {name: value for name, value in fields.items() if name != 'attention'}
    return read(cls, fields, 'model')


def vit_b(**changes) -> DitSamConfig:
  """DIT-SAM with SAM's ViT-B and BERT base. The default is the release's L-DIT; fusion='e2e' is its E-DIT."""
  return dataclasses.replace(DitSamConfig(), **changes)


def vit_l(**changes) -> DitSamConfig:
  """DIT-SAM with ViT-L. `layer_wise_vith` projects the text to its width (1024)."""
  encoder = ImageEncoderConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
  return dataclasses.replace(DitSamConfig(image_encoder=encoder, fusion='layer_wise_vith'), **changes)


def vit_h(**changes) -> DitSamConfig:
  """DIT-SAM with ViT-H. `layer_wise_vith` projects the text to its width (1280)."""
  encoder = ImageEncoderConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
  return dataclasses.replace(DitSamConfig(image_encoder=encoder, fusion='layer_wise_vith'), **changes)


def tiny(**changes) -> DitSamConfig:
  """A small model for the shapes data: 128 x 128 images, 64 tokens, global attention in all blocks."""
  config = DitSamConfig(
    image_encoder=ImageEncoderConfig(width=96, depth=6, heads=3, global_blocks=tuple(range(6)), pretrain_grid=8),
    mask_decoder=MaskDecoderConfig(width=96, heads=4, mlp_width=192, iou_hidden=64),
    text_encoder=TextEncoderConfig(
      vocab_size=128, width=96, depth=2, heads=3, mlp_width=384, max_positions=32, dropout=0.0
    ),
    fusion_dropout=0.0,
    image_size=128,
    max_text_tokens=12,
    mask_threshold=0.5,
  )
  return dataclasses.replace(config, **changes)


def sharp(**changes) -> DitSamConfig:
  """`tiny` with 96 x 96 images in 144 tokens, more words and longer sentences: sharper masks for twice the time."""
  config = tiny()
  assert config.text_encoder is not None
  config = dataclasses.replace(
    config,
    image_encoder=dataclasses.replace(config.image_encoder, patch_size=8, pretrain_grid=12),
    text_encoder=dataclasses.replace(config.text_encoder, vocab_size=640),
    image_size=96,
    max_text_tokens=16,
  )
  return dataclasses.replace(config, **changes)


def sam(config: DitSamConfig) -> DitSamConfig:
  """The plain SAM of the same size: no text encoder, and windows, input and output as released by Meta."""
  encoder = dataclasses.replace(config.image_encoder, attention_scope='windowed')
  return dataclasses.replace(
    config,
    image_encoder=encoder,
    text_encoder=None,
    fusion='none',
    image_size=encoder.pretrain_grid * encoder.patch_size,
    mask_threshold=0.5,
    align_corners=False,
  )


PRESETS = {'tiny': tiny, 'sharp': sharp, 'vit_b': vit_b, 'vit_l': vit_l, 'vit_h': vit_h}
