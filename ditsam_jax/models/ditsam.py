"""The complete model: text-prompted SAM."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models import layers
from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.image_encoder import ImageEncoder
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.models.mask_decoder import MaskDecoder
from ditsam_jax.models.prompt_encoder import PromptEncoder
from ditsam_jax.models.text_encoder import TextEncoder
from ditsam_jax.ops.resize import resize_masks

_PROMPT_AXES = {
  'token_ids': ('B', 'T'),
  'token_mask': ('B', 'T'),
  'points': ('B', 'P', '2'),
  'point_labels': ('B', 'P'),
  'boxes': ('B', '4'),
  'masks': ('B', '4h', '4w'),
}


class Output(NamedTuple):
  """Result of a forward pass. With multimask, the first three arrays have an axis of 3 masks after the batch."""

  logits: jax.Array  # [B, S, S]
  low_res_logits: jax.Array  # [B, S/4, S/4] (four times the token grid)
  iou: jax.Array  # [B], predicted
  image_embedding: jax.Array  # [B, h, w, C]
  text_features: jax.Array | None  # [B, T, Ct]


class DitSam(nnx.Module):
  """Segment Anything with deep instruction tuning (arXiv 2404.00650); plain SAM if `text_encoder` is None."""

  def __init__(self, config: DitSamConfig, *, rngs: nnx.Rngs):
    self.config = config
    self.text_encoder = nnx.data(None)
    self.text_proj = nnx.data(None)
    with layers.quick_draws(rngs) as rngs:
      self.image_encoder = ImageEncoder(config, rngs=rngs)
      self.prompt_encoder = PromptEncoder(config.mask_decoder, rngs=rngs)
      self.mask_decoder = MaskDecoder(config.mask_decoder, rngs=rngs)
      if config.text_encoder is not None:
        self.text_encoder = TextEncoder(config.text_encoder, rngs=rngs)
        self.text_proj = layers.Linear(config.text_encoder.width, config.mask_decoder.width, rngs=rngs)

  def __call__(
    self,
    images: jax.Array,
    token_ids: jax.Array | None = None,
    token_mask: jax.Array | None = None,
    *,
    points: jax.Array | None = None,
    point_labels: jax.Array | None = None,
    boxes: jax.Array | None = None,
    masks: jax.Array | None = None,
    multimask: bool = False,
    rngs: nnx.Rngs | None = None,
    execution: Execution = Execution(),
  ) -> Output:
    """Segments one object per image.

    Args:
      images: normalised f32 [B, H, W, 3]; sides multiples of the patch size.
      token_ids: int [B, T], the sentence; None for visual prompts only.
      token_mask: 0/1 [B, T], 0 at padding; None for visual prompts only.
      points: f32 [B, P, 2], (x, y) in pixels.
      point_labels: int [B, P] (-1 padding, 0 negative, 1 positive).
      boxes: f32 [B, 4], (x0, y0, x1, y1) in pixels.
      masks: low-resolution mask logits [B, 4h, 4w].
      multimask: return three masks, for ambiguous prompts.
      rngs: a 'dropout' stream for this call; None uses the model's own (only needed in train mode).
      execution: how the image encoder's blocks run.

    Returns:
      An Output.

    Raises:
      ValueError: shapes or prompts are inconsistent.
    """
    self._check(
      images,
      {
        'token_ids': token_ids,
        'token_mask': token_mask,
        'points': points,
        'point_labels': point_labels,
        'boxes': boxes,
        'masks': masks,
      },
    )
    text = None
    if self.text_encoder is not None and token_ids is not None and token_mask is not None:
      text = self.text_encoder(token_ids, token_mask, rngs=rngs)
    embedding = self.image_encoder(images, text, rngs=rngs, execution=execution)
    size = images.shape[1], images.shape[2]
    sparse = self.prompt_encoder.sparse(points, point_labels, boxes, size)
    return self.decode(embedding, sparse, masks, size, multimask, text)

  def decode(
    self,
    embedding: jax.Array,
    sparse: list[jax.Array],
    masks: jax.Array | None,
    image_size: tuple[int, int],
    multimask: bool | None = False,
    text: jax.Array | None = None,
    sparse_mask: jax.Array | None = None,
    has_mask: jax.Array | None = None,
  ) -> Output:
    """Decodes prompts to masks.

    Args:
      embedding: image embedding of each prompt [B, h, w, C], or [1, h, w, C] of one image for all prompts.
      sparse: tokens of points and boxes, a list of [B, P, C].
      masks: mask prompts [B, 4h, 4w], or None.
      image_size: (height, width) of the model's input, and of the logits.
      multimask: three masks per prompt instead of one; None for all four, the single one first.
      text: text features [B, T, Ct]; projected and appended to the other sparse tokens.
      sparse_mask: bool [B, P] over the tokens of `sparse`, False at padding; None if there is no padding.
      has_mask: bool [B], False for prompts whose entry in `masks` is ignored; None if all count.

    Returns:
      An Output, with an axis of M masks unless `multimask` is False; M is 3, or 4 for None.
    """
    _, h, w, width = embedding.shape
    if text is not None:
      assert self.text_proj is not None  # text requires a text encoder
      sparse = [*sparse, self.text_proj(text)]
      if sparse_mask is not None:
        sparse_mask = jnp.pad(sparse_mask, ((0, 0), (0, text.shape[1])), constant_values=True)
    batch = (embedding if masks is None else masks).shape[0]  # not len(): exported programs have batches of any size
    tokens = jnp.concatenate(sparse, axis=1) if sparse else jnp.zeros((batch, 0, width), embedding.dtype)
    dense = self.prompt_encoder.dense(masks, embedding.shape[0], (h, w), has_mask)
    pe = self.prompt_encoder.pe_layer.grid(h, w)
    # Positions are always f32, everything else has the type of the weights, and outputs are f32.
    pe, tokens, dense = (x.astype(embedding.dtype) for x in (pe, tokens, dense))
    low_res, iou = map(layers.at_least_f32, self.mask_decoder(embedding, pe, tokens, dense, multimask, sparse_mask))
    if multimask is False:
      low_res, iou = low_res[:, 0], iou[:, 0]
    logits = resize_masks(low_res, image_size, self.config.align_corners)
    return Output(logits, low_res, iou, embedding, text)

  def _check(self, images: jax.Array, prompts: dict[str, jax.Array | None]):
    patch = self.config.image_encoder.patch_size
    if images.ndim != 4 or images.shape[-1] != 3 or images.shape[1] % patch or images.shape[2] % patch:
      raise ValueError(f'images are {images.shape}; expected [B, H, W, 3] with sides that are multiples of {patch}')
    if prompts['token_ids'] is not None and self.text_encoder is None:
      raise ValueError('this model has no text encoder: prompt it with points, boxes or masks')
    for one, other in (('token_ids', 'token_mask'), ('points', 'point_labels')):
      if (prompts[one] is None) != (prompts[other] is None):
        raise ValueError(f'{one} and {other} go together; only one of them was given')
    sizes = {
      'B': images.shape[0],
      '2': 2,
      '4': 4,
      '4h': 4 * images.shape[1] // patch,
      '4w': 4 * images.shape[2] // patch,
    }
    for name, axes in _PROMPT_AXES.items():
      prompt = prompts[name]
      if prompt is None:
        continue
      shape = prompt.shape  # the first prompt with an axis T or P determines its size
      if len(shape) != len(axes) or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, shape)):
        known = ', '.join(f'{axis} = {sizes[axis]}' for axis in axes if axis in sizes and not axis.isdigit())
        raise ValueError(f'{name} is {shape}; expected [{", ".join(axes)}] with {known}')
    limit = self.config.text_encoder.max_positions if self.config.text_encoder is not None else 0
    if sizes.get('T', 0) > limit:
      raise ValueError(f'{sizes["T"]} tokens per sentence; the text encoder has {limit} positions')
    fixed = self.config.max_text_tokens  # of fusions with learnt tokens, which a sentence of one token would broadcast
    if sizes.get('T', fixed) != fixed and any(t.text_axis is not None for t in FUSIONS[self.config.fusion].tensors):
      raise ValueError(f'{sizes["T"]} tokens per sentence; the fusion {self.config.fusion!r} has learnt {fixed}')


def abstract_model(config: DitSamConfig) -> DitSam:
  """Returns a model with shapes in place of weights; the caller may change it.

  Its random streams are real: they are used in train mode, also with weights that come later. Tracing the initialisers
  takes 0.2 to 0.5 s, so it is done once for a config.
  """
  model = nnx.merge(*_traced(config, jax.dtypes.canonicalize_dtype(float)), copy=True)
  streams = nnx.state(model, nnx.RngState)
  for _, variable in nnx.to_flat_state(streams):
    is_key = jnp.issubdtype(variable.dtype, jax.dtypes.prng_key)
    variable.set_value(jax.random.key(0) if is_key else jnp.zeros(variable.shape, variable.dtype))
  nnx.update(model, streams)
  return model


@functools.lru_cache(maxsize=64)
def _traced(config: DitSamConfig, real: jnp.dtype) -> tuple:
  del real  # some weights have JAX's default type, which depends on the setting jax_enable_x64
  return nnx.split(nnx.eval_shape(lambda: DitSam(config, rngs=nnx.Rngs(0))))
