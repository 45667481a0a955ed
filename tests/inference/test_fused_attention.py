"""On GPUs, inference with 'auto' uses cuDNN's fused attention, as the programs lowered for CUDA show.

benchmarks/compile_inference.py compiles the same programs for an H100 if JAX's CUDA plugin is installed.
"""

import jax.numpy as jnp
import pytest

from ditsam_jax.inference import programs
from ditsam_jax.models.config import sam
from ditsam_jax.models.weights import cast_array, dtype_named
from ditsam_jax.ops.attention import choice, cudnn
from tests.small_models import random_model, small_config


@pytest.fixture(autouse=True)
def an_h100(monkeypatch):
  """Pretends to be an H100: JAX queries the local GPU and cuDNN even when it lowers for another machine."""
  fused = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  monkeypatch.setattr(cudnn, 'compute_capability', lambda: (9, 0))
  monkeypatch.setattr(fused, 'check_cudnn_version', lambda: 91000)
  monkeypatch.setattr(fused, 'check_compute_capability', lambda capability: capability <= '9.0')
  monkeypatch.setattr(fused, 'is_cuda_compute_capability_equal', lambda capability: capability == '9.0')
  forget_traces()
  yield
  forget_traces()


def forget_traces():
  """Clears traces of attention, which depend on the machine's capabilities."""
  for program in (choice.compute, programs.encode):
    program.clear_cache()


def lowered(config, platform, dtype, rows=2):
  """Lowers the image encoder's program and returns its text."""
  parts = programs.parts_of(random_model(config))
  part, weights = parts.encoder
  dtype = dtype_named(dtype, 'gpu')
  weights = {name: cast_array(name, array, dtype) for name, array in weights.items()}
  images = jnp.zeros((rows, config.image_size, config.image_size, 3))
  features = None
  if config.fusion != 'none':
    features = (jnp.zeros((config.max_text_tokens, config.text_encoder.width), dtype),) * rows
  return programs.encode.trace(part, weights, images, features).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.slow
@pytest.mark.parametrize('changes', [{}, {'fusion': 'none'}])
def test_attention_is_fused_on_gpus_only(changes):
  config = small_config(**changes)
  calls = [
    lowered(config, *target).count('__cudnn$fmha')
    for target in (('cuda', 'auto'), ('cuda', 'float32'), ('cpu', 'auto'))
  ]
  assert calls[0] >= 1 and calls[1:] == [0, 0]


def test_windowed_attention_of_plain_sam_is_fused():
  assert '__cudnn$fmha' in lowered(sam(small_config()), 'cuda', 'auto')
