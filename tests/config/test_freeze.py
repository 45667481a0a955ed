"""`freeze` names parts of the model or matches the start of parameter paths."""

from ditsam_jax.config.freeze import FREEZE_GROUPS, freeze_pattern


def test_freeze_patterns():
  assert freeze_pattern('') is None and freeze_pattern(' , ') is None
  pattern = freeze_pattern('text_encoder, image_encoder,mask_decoder.iou_token')
  assert set(FREEZE_GROUPS) >= {'text_encoder', 'image_encoder'}
  frozen = [
    'text_encoder.layers.0.query.kernel',
    'image_encoder.blocks.1.norm1.scale',
    'image_encoder.pos_embed',
    'mask_decoder.iou_token',
  ]
  trained = [
    'text_proj.kernel',
    'image_encoder.instruction.probs.0.kernel',
    'mask_decoder.mask_tokens',
    'prompt_encoder.no_mask_embed',
  ]
  assert all(pattern.match(name) for name in frozen) and not any(pattern.match(name) for name in trained)
