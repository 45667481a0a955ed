"""`freeze` names parts of the model or matches the start of parameter paths."""

import pytest

from ditsam_jax.config.freeze import FREEZE_GROUPS, freeze_patterns
from ditsam_jax.errors import UserError
from ditsam_jax.training.step import trained_of


def test_freeze_patternss():
  assert freeze_patterns('') == freeze_patterns(' , ') == {}
  patterns = freeze_patterns('text_encoder, image_encoder,mask_decoder.iou_token')
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
  assert trained_of({*frozen, *trained}, patterns) == set(trained)


@pytest.mark.parametrize('freeze', ['text_encodr,image_encoder', 'image_encoder,text_encodr', 'text_encodr'])
def test_a_part_that_matches_nothing_is_named(freeze):
  with pytest.raises(UserError, match="config.freeze: 'text_encodr' matches no parameter; name one of image_encoder"):
    trained_of({'image_encoder.pos_embed', 'text_encoder.layers.0.query.kernel'}, freeze_patterns(freeze))
