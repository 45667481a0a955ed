"""What a model is, as data: dataclasses, presets, and their JSON form."""

import dataclasses
from typing import Any

from ditsam_jax.models.instruction import FUSIONS, Sizes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCOPES = ('global', 'windowed')


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
  """SAM's ViT (arXiv 2304.02643, appendix A)."""

  width: int = 768
  depth: int = 12
  heads: int = 12
  patch_size: int = 16
  mlp_ratio: int = 4
  global_blocks: tuple[int, ...] = (2, 5, 8, 11)  # blocks pre-trained with global attention
  pretrain_grid: int = 64  # tokens a side of the pre-training image: size of pos_embed and of the global tables
  pretrain_window: int = 14  # window of the other blocks in pre-training: size of their tables
  attention_scope: str = 'global'  # of those blocks now: 'global', as in DIT, or in their windows, 'windowed'

  def window(self, block: int) -> int:
    """Side of the windows that a block attends in, 0 for the whole grid."""
    return 0 if self.attention_scope == 'global' or block in self.global_blocks else self.pretrain_window


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
  """SAM's prompt encoder and two-way mask decoder."""

  width: int = 256
  depth: int = 2
  heads: int = 8
  mlp_width: int = 2048
  iou_hidden: int = 256
  mask_channels: int = 16  # channels inside the mask prompt's down-scaling


@dataclasses.dataclass(frozen=True)
class TextEncoderConfig:
  """BERT."""

  vocab_size: int = 30522
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_width: int = 3072
  max_positions: int = 512
  dropout: float = 0.1


@dataclasses.dataclass(frozen=True)
class DitSamConfig:
  """A whole model. `text_encoder=None` is SAM as Meta released it."""

  image_encoder: ImageEncoderConfig = ImageEncoderConfig()
  mask_decoder: MaskDecoderConfig = MaskDecoderConfig()
  text_encoder: TextEncoderConfig | None = TextEncoderConfig()
  fusion: str = 'layer_wise'  # one of FUSIONS, see models/instruction.py
  fusion_dropout: float = 0.1  # after each projection of the text, in training
  image_size: int = 512  # side of the square the model is used at
  pixel_mean: tuple[float, ...] = IMAGENET_MEAN  # of pixels on 0..1
  pixel_std: tuple[float, ...] = IMAGENET_STD
  max_text_tokens: int = 20
  mask_threshold: float = 0.35  # on the sigmoid
  align_corners: bool = True  # how logits are upsampled to the image: with aligned corners in DIT, without in SAM

  def __post_init__(self):
    encoder = self.image_encoder
    for part in ('image_encoder', 'mask_decoder', 'text_encoder'):
      for name, value in (dataclasses.asdict(getattr(self, part)) if getattr(self, part) else {}).items():
        if type(value) is int and value < 1:
          raise ValueError(f'model.{part}.{name} is {value}; expected a whole number from 1')
    if encoder.attention_scope not in SCOPES:
      raise ValueError(
        f'model.image_encoder.attention_scope is {encoder.attention_scope!r}; choose one of {", ".join(SCOPES)}'
      )
    if self.fusion not in FUSIONS:
      raise ValueError(f'model.fusion is {self.fusion!r}; choose one of {", ".join(FUSIONS)}')
    if self.image_size <= 0 or self.image_size % encoder.patch_size:
      raise ValueError(
        f'model.image_size is {self.image_size}; it must be a multiple of the patch size {encoder.patch_size}'
      )
    for name, width, heads in (
      ('image_encoder', encoder.width, encoder.heads),
      ('mask_decoder', self.mask_decoder.width // 2, self.mask_decoder.heads),
      *([('text_encoder', self.text_encoder.width, self.text_encoder.heads)] if self.text_encoder else []),
    ):
      if heads <= 0 or width % heads:
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
      raise ValueError(f'model.mask_decoder.width is {self.mask_decoder.width}; it must be a multiple of 8')
    FUSIONS[self.fusion].check(self.fusion_sizes)

  @property
  def grid(self) -> int:
    """Image tokens a side."""
    return self.image_size // self.image_encoder.patch_size

  @property
  def fusion_sizes(self) -> Sizes:
    """What the fusion knows of the model."""
    encoder, text = self.image_encoder, self.text_encoder
    text_width = text.width if text else None
    return Sizes(encoder.width, encoder.depth, text_width, self.max_text_tokens, self.fusion_dropout)

  @property
  def heads(self) -> dict[str, int]:
    """Attention heads by encoder."""
    parts = {'image_encoder': self.image_encoder, 'text_encoder': self.text_encoder}
    return {name: part.heads for name, part in parts.items() if part is not None}

  def to_dict(self) -> dict[str, Any]:
    """Plain containers, ready for JSON."""
    return dataclasses.asdict(self)

  @classmethod
  def from_dict(cls, fields: dict[str, Any]) -> 'DitSamConfig':
    """The inverse of `to_dict`, also of its JSON form. Raises ValueError on unknown fields."""
    if isinstance(fields, dict) and fields.get('attention') == 'auto':  # in models saved before it became a setting
      fields = {name: value for name, value in fields.items() if name != 'attention'}
    return _build(cls, fields, 'model')


_NESTED = {'image_encoder': ImageEncoderConfig, 'mask_decoder': MaskDecoderConfig, 'text_encoder': TextEncoderConfig}


def _build(cls, fields: dict[str, Any], path: str):
  if not isinstance(fields, dict):
    raise ValueError(f'{path} is {fields!r}; expected its fields by name')
  known = {field.name: field.default for field in dataclasses.fields(cls)}
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise ValueError(f'{path} has unknown fields {unknown}; it knows {sorted(known)}')
  values = {}
  for name, value in fields.items():
    if name in _NESTED and (value is not None or name != 'text_encoder'):
      values[name] = _build(_NESTED[name], value, f'{path}.{name}')
      continue
    values[name] = tuple(value) if isinstance(value, list) else value
    if name not in _NESTED and not _is_like(values[name], known[name]):
      raise ValueError(f'{path}.{name} is {value!r}; expected something like {known[name]!r}')
  return cls(**values)


def _is_like(value: Any, default: Any) -> bool:
  """Whether a value from a file has the type of the field's default."""
  if isinstance(default, tuple):
    return isinstance(value, tuple) and all(_is_like(item, default[0]) for item in value)
  if isinstance(default, float):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
  return type(value) is type(default)


def vit_b(**changes) -> DitSamConfig:
  """DIT-SAM on SAM's ViT-B with BERT base: the release's L-DIT, for example with fusion='e2e' its E-DIT."""
  return dataclasses.replace(DitSamConfig(), **changes)


def vit_l(**changes) -> DitSamConfig:
  """ViT-L: text is projected to its width (1024), hence `layer_wise_vith`."""
  encoder = ImageEncoderConfig(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
  return dataclasses.replace(DitSamConfig(image_encoder=encoder, fusion='layer_wise_vith'), **changes)


def vit_h(**changes) -> DitSamConfig:
  """ViT-H: text is projected to its width (1280), hence `layer_wise_vith`."""
  encoder = ImageEncoderConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
  return dataclasses.replace(DitSamConfig(image_encoder=encoder, fusion='layer_wise_vith'), **changes)


def tiny(**changes) -> DitSamConfig:
  """A small model for the embedded data: 128 x 128 images, 64 tokens, all blocks global."""
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


def sam(config: DitSamConfig) -> DitSamConfig:
  """The plain SAM of the same size: no text encoder, official windows, input and output."""
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


PRESETS = {'tiny': tiny, 'vit_b': vit_b, 'vit_l': vit_l, 'vit_h': vit_h}
