"""Model configs survive a round trip through JSON, and invalid ones are refused by name."""

import dataclasses
import json

import pytest

from ditsam_jax.models import config as models
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, MaskDecoderConfig, TextEncoderConfig


@pytest.mark.parametrize(
  'config', [*(preset() for preset in models.PRESETS.values()), models.sam(models.vit_b()), models.vit_b(fusion='e2e')]
)
def test_json_round_trip(config):
  assert DitSamConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
  'field, values, expected',
  [
    ('fusion', dict(fusion='layerwise'), "layerwise.*did you mean 'layer_wise'.*expected one of none, layer_wise"),
    ('image_size', dict(image_size=500), '500.*multiple of the patch size 16'),
    ('image_size', dict(image_size=0), '0.*a whole number from 1'),
    ('image_encoder', dict(image_encoder=ImageEncoderConfig(heads=7)), '7 heads.*768'),
    ('image_encoder', dict(image_encoder=ImageEncoderConfig(heads=0)), 'heads is 0'),
    ('mask_decoder', dict(mask_decoder=MaskDecoderConfig(heads=3)), '3 heads.*128'),
    ('text_encoder', dict(text_encoder=TextEncoderConfig(heads=5)), '5 heads.*768'),
    ('mask_decoder.width', dict(mask_decoder=MaskDecoderConfig(width=12, heads=2)), '12.*multiple of 8'),
    ('fusion', dict(text_encoder=None), 'no text encoder'),
    ('fusion', dict(fusion='e2e_token', image_encoder=ImageEncoderConfig(depth=1)), 'e2e_token.*2 or more'),
    (
      'image_encoder.attention_scope',
      dict(image_encoder=ImageEncoderConfig(attention_scope='local')),
      'local.*windowed',
    ),
    ('fusion', dict(text_encoder=TextEncoderConfig(width=384)), '384 and 768.*layer_wise_vith'),
  ],
)
def test_invalid_values_are_named(field, values, expected):
  with pytest.raises(ValueError, match=rf'model\.{field}.*{expected}|model\.{field}: {expected}'):
    DitSamConfig(**values)


@pytest.mark.parametrize('path', ['', 'image_encoder', 'text_encoder'])
def test_unknown_fields_are_named(path):
  fields = models.vit_b().to_dict()
  (fields[path] if path else fields)['widht'] = 3
  with pytest.raises(ValueError, match=rf"model{'.' if path else ''}{path} has no field 'widht'; .*it has: "):
    DitSamConfig.from_dict(fields)


@pytest.mark.parametrize(
  'path, field, value',
  [
    ('image_encoder', 'depth', 'two'),
    ('image_encoder', 'global_blocks', [1, 'x']),
    ('', 'image_size', 512.0),
    ('', 'align_corners', 1),
    ('', 'pixel_mean', 0.5),
    ('', 'image_encoder', 3),
    ('', 'mask_decoder', None),
    ('', 'mask_threshold', -3),
    ('', 'mask_threshold', float('nan')),
    ('', 'pixel_std', [0.2, 0.0, 0.2]),
    ('', 'pixel_std', [0.2, 1e300, 0.2]),
    ('', 'pixel_mean', [0.5, float('inf'), 0.5]),
    ('', 'pixel_mean', [0.5, 0.5]),
    ('', 'fusion_dropout', -1),
    ('', 'fusion', None),
    ('', 'image_size', 10**400),
    ('', 'mask_threshold', 10**400),
    ('image_encoder', 'width', 1_000_000),
    ('image_encoder', 'depth', 1_000_000),
    ('image_encoder', 'mlp_ratio', True),
    ('image_encoder', 'global_blocks', [-1]),
    ('mask_decoder', 'mlp_width', 10**9),
    ('text_encoder', 'vocab_size', 0),
    ('text_encoder', 'dropout', 1.0),
  ],
)
def test_values_of_a_wrong_type_are_named(path, field, value):
  fields = json.loads(json.dumps(models.vit_b().to_dict()))
  (fields[path] if path else fields)[field] = value
  with pytest.raises(ValueError, match=rf'model.*\.{field} is .*; expected'):
    DitSamConfig.from_dict(fields)


def test_lists_and_whole_numbers_from_json_are_converted():
  fields = json.loads(json.dumps(models.vit_b().to_dict())) | {'fusion_dropout': 0}
  config = DitSamConfig.from_dict(fields)
  assert config.pixel_mean == models.IMAGENET_MEAN and config.image_encoder.global_blocks == (2, 5, 8, 11)
  assert config.fusion_dropout == 0.0 and isinstance(config.fusion_dropout, float)


def test_missing_fields_get_their_defaults():
  fields = models.tiny().to_dict()
  del fields['align_corners'], fields['image_encoder']['attention_scope']
  assert DitSamConfig.from_dict(fields) == models.tiny()


def test_too_many_image_tokens_are_refused():
  with pytest.raises(ValueError, match='1024 patches of 8 per side; expected at most 512'):
    models.vit_b(image_size=8192, image_encoder=ImageEncoderConfig(patch_size=8))


def test_configs_with_the_former_attention_field_still_load():
  fields = models.vit_b().to_dict()
  assert DitSamConfig.from_dict(fields | {'attention': 'auto'}) == models.vit_b()
  with pytest.raises(ValueError, match='attention'):
    DitSamConfig.from_dict(fields | {'attention': 'reference'})


def test_plain_sam_has_metas_windows_and_image_size():
  config = models.sam(models.vit_l())
  assert (config.image_encoder.window(0), config.image_size, config.grid) == (14, 1024, 64)
  assert config.text_encoder is None and config.fusion == 'none'


@pytest.mark.parametrize('preset', models.PRESETS.values())
def test_presets_can_be_changed_in_any_field(preset):
  assert preset(image_size=64, max_text_tokens=9) == dataclasses.replace(preset(), image_size=64, max_text_tokens=9)


def test_configs_are_immutable():
  with pytest.raises(dataclasses.FrozenInstanceError):
    models.vit_b().image_size = 1024
