"""Model FLOPs agree with XLA's count of the forward pass, which includes elementwise work."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from ditsam_jax.models import config as models
from ditsam_jax.models.ditsam import abstract_model
from ditsam_jax.models.execution import Execution
from ditsam_jax.models.flops import forward_flops, training_flops


def counted_by_xla(config, prompts):
  """XLA's FLOPs of the lowered forward pass of one image, with the reference attention."""
  model = abstract_model(config)
  model.eval()
  graph, weights = nnx.split(model)
  shapes = {name: jax.ShapeDtypeStruct((1, *shape), dtype) for name, (shape, dtype) in prompts.items()}
  shapes['images'] = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
  execution = Execution(attention='reference')
  forward = jax.jit(lambda weights, inputs: nnx.merge(graph, weights)(**inputs, execution=execution).logits)
  return forward.lower(weights, shapes).cost_analysis()['flops']


@pytest.mark.slow
@pytest.mark.verifies('FLOPs of a forward pass, for MFU', against="XLA's count of the lowered program", within='2 %')
@pytest.mark.parametrize(
  'config',
  [models.vit_b(), models.vit_b(fusion='none'), models.vit_b(fusion='cross_attention'), models.vit_h()],
  ids=['vit_b', 'text baseline', 'cross_attention', 'vit_h'],
)
def test_with_a_sentence(config):
  tokens = (config.max_text_tokens,), jnp.int32
  expected = counted_by_xla(config, {'token_ids': tokens, 'token_mask': tokens})
  assert expected / sum(forward_flops(config).values()) == pytest.approx(1.01, abs=0.01)


@pytest.mark.verifies('FLOPs of a forward pass, for MFU', against="XLA's count of the lowered program", within='2 %')
def test_plain_sam_in_windows_with_a_box():
  config = models.sam(models.vit_b())
  expected = counted_by_xla(config, {'boxes': ((4,), jnp.float32)})
  assert expected / sum(forward_flops(config, prompt_tokens=2).values()) == pytest.approx(1.01, abs=0.01)


def test_training_takes_three_times_the_flops_and_prompts_share_the_encoder():
  config = models.vit_b()
  one, three = forward_flops(config), forward_flops(config, prompts=3, prompt_tokens=config.max_text_tokens)
  assert training_flops(config) == 3 * sum(one.values())
  assert three['mask_decoder'] == 3 * one['mask_decoder']
