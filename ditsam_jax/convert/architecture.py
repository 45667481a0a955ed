"""Infers the architecture from tensor shapes; the rest comes from known models or flags."""

import re
from typing import Any, NamedTuple

from ditsam_jax.errors import UserError
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, MaskDecoderConfig, TextEncoderConfig
from ditsam_jax.models.instruction import FUSIONS

Shapes = dict[str, tuple[int, ...]]
RELEASE_IMAGE_SIZE = 512

# Heads of published models by (width, depth, MLP width), because shapes do not determine the number of heads.
DECODER_HEADS = {  # SAM's decoder, and the deeper ones of DIT's ablations
  (256, 2, 2048): 8,
  (256, 4, 2048): 8,
  (256, 6, 2048): 8,
}
TEXT_HEADS = {(768, 12, 3072): 12, (1024, 24, 4096): 16}  # BERT base and large


class _Published(NamedTuple):
  """Published models of a part of the config, and the flag that gives the heads of others."""

  part: str
  heads: dict[tuple[int, int, int], int]
  models: str
  flag: str


_DECODERS = _Published('mask_decoder', DECODER_HEADS, "SAM's (256 wide, 2 deep; DIT's are 4 or 6)", '--decoder-heads')
_TEXT_ENCODERS = _Published('text_encoder', TEXT_HEADS, 'BERT base and large', '--text-heads')


class Architecture(NamedTuple):
  """A config, and those of its fields that come from a known model instead of the file or a flag."""

  config: DitSamConfig
  assumed: dict[str, object]


def read_architecture(
  shapes: Shapes,
  *,
  fusion: str | None = None,
  new_fusion: bool = False,
  image_size: int | None = None,
  decoder_heads: int | None = None,
  text_heads: int | None = None,
) -> Architecture:
  """Infers the config from tensor shapes.

  Args:
    shapes: shapes by the release's names; without BERT's tensors, the model is a plain SAM.
    fusion: the fusion, for those that shapes cannot tell apart.
    new_fusion: the tensors are those of a plain SAM and a BERT, to which `fusion` will be added.
    image_size: image size to use; None uses SAM's own for a plain SAM, and the release's 512 otherwise.
    decoder_heads: heads of the mask decoder; None uses those of a known model.
    text_heads: heads of BERT; None uses those of a known model.

  Raises:
    KeyError: a tensor that determines the architecture is missing; its name, or that of a layer, in the release.
    UserError: one has an invalid shape, or shapes and arguments are inconsistent.
  """
  try:
    encoder, pretrained_size = _image_encoder(shapes)
    assumed: dict[str, object] = {}
    decoder = _mask_decoder(shapes, decoder_heads, assumed)
    text = _text_encoder(shapes, text_heads, assumed) if _has(shapes, r'lang_encoder\.') else None
    kind = _new_fusion(fusion) if new_fusion else _fusion(shapes, fusion, text)
    settings: dict[str, Any] = dict(
      fusion=kind, image_size=image_size or (pretrained_size if text is None else RELEASE_IMAGE_SIZE)
    )
    if text is None:
      settings |= dict(mask_threshold=0.5, align_corners=False)  # as in SAM
    settings |= _text_tokens(shapes, kind)
    if text is not None:
      encoder['attention_scope'] = 'global'  # DIT uses global attention in all blocks
    config = DitSamConfig(ImageEncoderConfig(**encoder), decoder, text, **settings)
    unstated = ['mask_threshold', 'align_corners', 'pixel_mean', 'pixel_std']
    if text is not None:
      unstated += ['max_text_tokens'] if 'max_text_tokens' not in settings else []
      unstated += ['image_size'] if image_size is None else []
    return Architecture(config, assumed | {name: getattr(config, name) for name in unstated})
  except ValueError as error:
    raise UserError(f"{error} (the tensors' shapes and the flags do not make a model)") from error


def _image_encoder(shapes: Shapes) -> tuple[dict, int]:
  """Returns the fields of an ImageEncoderConfig, and the side of its pre-training images."""
  width, _, patch, patch_width = _shape(shapes, 'visual_encoder.patch_embed.proj.weight', 4)
  _expect_square('visual_encoder.patch_embed.proj.weight', patch, patch_width)
  depth = _count(shapes, r'visual_encoder\.blocks\.(\d+)\..*')
  rows = [_shape(shapes, f'visual_encoder.blocks.{i}.attn.rel_pos_h', 2) for i in range(depth)]
  for i, (length, _) in enumerate(rows):
    _expect_square(
      f'visual_encoder.blocks.{i}.attn.rel_pos_h and rel_pos_w',
      length,
      _shape(shapes, f'visual_encoder.blocks.{i}.attn.rel_pos_w', 2)[0],
    )
  sizes = [(length + 1) // 2 for length, _ in rows]
  _, grid, grid_width, _ = _shape(shapes, 'visual_encoder.pos_embed', 4)
  _expect_square('visual_encoder.pos_embed', grid, grid_width)
  windows = sorted(set(sizes) - {grid})
  if len(windows) > 1:
    raise UserError(
      f'blocks have relative positions for windows of {windows}; expected one window size besides the global {grid}'
    )
  hidden = _shape(shapes, 'visual_encoder.blocks.0.mlp.lin1.weight', 2)[0]
  window = windows[0] if windows else ImageEncoderConfig.pretrain_window
  fields = dict(
    width=width,
    depth=depth,
    heads=width // rows[0][1],
    patch_size=patch,
    mlp_ratio=hidden // width,
    global_blocks=tuple(i for i, size in enumerate(sizes) if size == grid),
    pretrain_grid=grid,
    pretrain_window=window,
    attention_scope='windowed' if windows else 'global',
  )
  return fields, grid * patch


def _mask_decoder(shapes: Shapes, heads: int | None, assumed: dict[str, object]) -> MaskDecoderConfig:
  width = _shape(shapes, 'mask_decoder.iou_token.weight', 2)[1]
  layers, mlp = 'mask_decoder.transformer.layers', 'mlp.lin1.weight'
  return MaskDecoderConfig(
    **_transformer(shapes, width, layers, mlp, _DECODERS, heads, assumed),
    iou_hidden=_shape(shapes, 'mask_decoder.iou_prediction_head.layers.0.weight', 2)[0],
    mask_channels=_shape(shapes, 'prompt_encoder.mask_downscaling.3.weight', 4)[0],
  )


def _text_encoder(shapes: Shapes, heads: int | None, assumed: dict[str, object]) -> TextEncoderConfig:
  vocab, width = _shape(shapes, 'lang_encoder.bert.embeddings.word_embeddings.weight', 2)
  layers, mlp = 'lang_encoder.bert.encoder.layer', 'intermediate.dense.weight'
  return TextEncoderConfig(
    vocab_size=vocab,
    **_transformer(shapes, width, layers, mlp, _TEXT_ENCODERS, heads, assumed),
    max_positions=_shape(shapes, 'lang_encoder.bert.embeddings.position_embeddings.weight', 2)[0],
  )


def _transformer(
  shapes: Shapes,
  width: int,
  layers: str,
  mlp: str,
  published: _Published,
  heads: int | None,
  assumed: dict[str, object],
) -> dict[str, int]:
  """Returns width, depth, heads and MLP width of a transformer.

  Args:
    shapes: shapes by the release's names.
    width: channels of a token.
    layers: name of the list of layers.
    mlp: name of the first MLP weight [hidden, width] within a layer.
    published: models whose heads are known.
    heads: the number of heads; None uses that of a published model, recorded in `assumed`.
    assumed: receives the field that comes from a published model.

  Raises:
    UserError: the heads are not given and no published model has these sizes; a wrong guess would go unnoticed.
  """
  depth = _count(shapes, rf'{re.escape(layers)}\.(\d+)\..*')
  mlp_width = _shape(shapes, f'{layers}.0.{mlp}', 2)[0]
  if heads is None:
    heads = published.heads.get((width, depth, mlp_width))
    if heads is None:
      raise UserError(
        f'tensor shapes do not determine the number of heads of the {published.part.replace("_", " ")}, and its sizes '
        f'(width {width}, depth {depth}, MLP {mlp_width}) match no known model, which are {published.models}; '
        f'give {published.flag}'
      )
    assumed[f'{published.part}.heads'] = heads
  return dict(width=width, depth=depth, heads=heads, mlp_width=mlp_width)


def _fusion(shapes: Shapes, asked: str | None, text: TextEncoderConfig | None) -> str:
  """Infers the fusion from the tensors; `asked` decides if several have the same tensors."""
  if text is None:
    if asked not in (None, 'none'):
      raise UserError(f'--fusion={asked} needs a text encoder, but this is a plain SAM; give --text-encoder')
    return 'none'
  possible = possible_fusions(shapes)  # at least one
  first, *others = possible
  if asked is None and others:
    raise UserError(
      f'tensor names and shapes fit the fusions {" and ".join(possible)} equally; choose one with --fusion'
    )
  if asked is not None and asked not in possible:
    raise UserError(f'--fusion={asked} does not fit the tensors, which belong to {" or ".join(possible)}')
  return asked or first


def _new_fusion(asked: str | None) -> str:
  if asked is None:
    raise UserError(
      f'a SAM and a BERT can be combined with any fusion; choose one with --fusion ({", ".join(FUSIONS)})'
    )
  return asked


def possible_fusions(shapes: Shapes) -> tuple[str, ...]:
  """Returns the fusions that have these tensors or, if tensors are missing or unknown, the closest ones."""
  names = {fusion: {f'visual_encoder.{tensor.source}' for tensor in FUSIONS[fusion].tensors} for fusion in FUSIONS}
  known = set().union(*names.values())
  present = {re.sub(r'\.\d+(?=\.)', '.#', name) for name in shapes} & known
  distances = {fusion: len(present ^ expected) for fusion, expected in names.items()}
  return tuple(fusion for fusion, distance in distances.items() if distance == min(distances.values()))


def _text_tokens(shapes: Shapes, fusion: str) -> dict[str, int]:
  """Returns {'max_text_tokens': ...} if a tensor of the fusion determines it, else {}."""
  for tensor in FUSIONS[fusion].tensors:
    name = f'visual_encoder.{tensor.source}'
    if tensor.text_axis is not None and name in shapes:
      return {'max_text_tokens': _shape(shapes, name, 3)[tensor.text_axis]}
  return {}


def _shape(shapes: Shapes, name: str, rank: int) -> tuple[int, ...]:
  """Returns the shape of a tensor. Raises KeyError if it is missing, UserError if it has another rank."""
  shape = shapes[name]
  if len(shape) != rank or 0 in shape:
    raise UserError(f'{name} is {shape}, expected {rank} axes of at least 1; this is not a SAM')
  return shape


def _expect_square(name: str, height: int, width: int) -> None:
  if height != width:
    raise UserError(f'{name} is {height} by {width}; only square patches, grids and windows are known')


def _has(shapes: Shapes, pattern: str) -> bool:
  return any(re.match(pattern, name) for name in shapes)


def _count(shapes: Shapes, pattern: str) -> int:
  """Counts the layers whose numbers appear in matching names. Raises KeyError, with a name, if one is missing."""
  numbers = {int(match[1]) for match in (re.fullmatch(pattern, name) for name in shapes) if match}
  layer = pattern.replace('\\', '').removesuffix('..*')
  if not numbers:
    raise KeyError(layer.replace('(d+)', '0'))
  gaps = [number for number in range(len(numbers)) if number not in numbers]
  if gaps:
    raise KeyError(layer.replace('(d+)', str(gaps[0])))
  return len(numbers)
