"""A run starts from those weights of a saved model that fit; unusable ones and other sizes are refused in one line."""

import jax
import numpy as np
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.models import config as models
from ditsam_jax.models.ditsam import abstract_model
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.training.start import read_start
from tests.small_models import random_model, small_config, write_unusable


def expected_weights(config):
  """Shapes of a model's weights, on one device."""
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return {
    name: jax.ShapeDtypeStruct(variable.shape, np.float32, sharding=place)
    for name, variable in weights_of(abstract_model(config)).items()
  }


def refusal(folder, config):
  with pytest.raises(UserError) as error:
    read_start(folder, expected_weights(config))
  assert '\n' not in str(error.value)
  return str(error.value)


def test_a_plain_sam_initialises_all_but_the_text_parts(tmp_path):
  sam = random_model(small_config(fusion='none', text_encoder=None), seed=5)
  saved_model.save(tmp_path / 'sam', sam, dtype=np.float16)
  expected = expected_weights(small_config())
  start = read_start(tmp_path / 'sam', expected)
  given = saved_model.read_weights(tmp_path / 'sam')
  assert {name.split('.')[0] for name in set(expected) - set(start) if 'instruction' not in name} == {
    'text_encoder',
    'text_proj',
  }
  assert set(start) == set(given)
  for name, array in start.items():
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, given[name], err_msg=name)


def test_a_model_of_another_size_is_refused(tmp_path):
  folder = saved_model.save(tmp_path / 'small', random_model(small_config(fusion='e2e')))
  wide = small_config(
    image_encoder=models.ImageEncoderConfig(width=48, depth=2, heads=2, pretrain_grid=4), fusion='layer_wise_vith'
  )
  message = refusal(folder, wide)
  assert 'init_from' in message and '(24, 72) there and (48, 144) here' in message


@pytest.mark.slow
@pytest.mark.parametrize('value', [np.nan, -1e30])
def test_unusable_weights_are_refused(tmp_path, value):
  config = write_unusable(tmp_path / 'bad', value)
  assert 'image_encoder.patch_embed.bias holds' in refusal(tmp_path / 'bad', config)
