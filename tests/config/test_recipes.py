"""The numbers of the recipes."""

from ditsam_jax.config import files, named
from ditsam_jax.config.checks import model_config
from ditsam_jax.models import config as models


def test_the_release_recipe():
  """The numbers used by the release's code."""
  config = files.load('ldit', [])
  assert model_config(config) == models.vit_b()
  optimizer = config.optimizer
  assert (optimizer.name, optimizer.learning_rate, optimizer.beta1, optimizer.beta2, optimizer.epsilon) == (
    'adam',
    1e-4,
    0.9,
    0.98,
    1e-9,
  )
  assert (optimizer.warmup_start, optimizer.min_learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (
    1e-7,
    1e-6,
    0.0,
    0.15,
  )
  assert config.data.batch_size == 64 and config.ema == 0.9997
  assert config.loss.to_dict() == dict(bce=1.0, dice=0.0, iou=0.0)
  assert config.epochs == 40 and config.freeze == ''


def test_rows_differ_from_ldit_only_in_their_ablation():
  frozen, deeper, huge = (named(name) for name in ('ldit_frozen_text', 'sam_text_add_4', 'ldit_vith'))
  assert frozen.freeze == 'text_encoder' and model_config(frozen) == models.vit_b()
  assert deeper.model.mask_decoder.depth == 6 and deeper.model.fusion == 'none'
  assert model_config(huge) == models.vit_h()
  assert model_config(named('ldit_vith', 'shapes')) == models.tiny(fusion='layer_wise_vith')


def test_recipes_do_not_share_their_groups():
  named('ldit').optimizer.beta1 = 0.5
  assert named('ldit').optimizer.beta1 == 0.9
