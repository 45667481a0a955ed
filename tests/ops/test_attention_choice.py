"""Which implementation is selected, and why others are unsupported."""

import functools
import inspect
import re
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from ditsam_jax.models.execution import Execution
from ditsam_jax.ops.attention import attention, cudnn
from ditsam_jax.ops.attention.choice import fastest, why_not

VIT_B_512, VIT_H_1024 = (64, 1044, 64), (80, 4116, 128)  # channels per head, tokens, rows + columns
WINDOW = (64, 196, 28)
TURING, AMPERE, HOPPER = (7, 5), (8, 0), (9, 0)


@pytest.mark.parametrize(
  'name, platform, dtype, shape, message',
  [
    ('pallas_tpu', 'cpu', 'float32', VIT_B_512, 'it runs on tpu, this is cpu'),
    ('cudnn', 'tpu', 'bfloat16', VIT_B_512, 'it runs on cuda, this is tpu'),
    ('cudnn', 'gpu', 'float32', VIT_B_512, 'it supports bfloat16 and float16, not float32'),
    ('pallas_tpu', 'tpu', 'float16', VIT_B_512, 'it supports bfloat16 and float32, not float16'),
    ('pallas_tpu', 'tpu', 'bfloat16', (64, 16404, 256), 'it supports up to 8192 tokens, not 16404'),
    ('pallas_gpu', 'cpu', 'bfloat16', VIT_B_512, 'it runs on cuda, this is cpu'),
    ('pallas_gpu', 'gpu', 'bfloat16', (64, 16404, 256), '128 for relative positions, not 64 and 256'),
    ('pallas_gpu', 'gpu', 'bfloat16', VIT_H_1024, None),
    ('fast', 'cpu', 'float32', VIT_B_512, 'choose one of auto, reference'),
    *(
      (name, platform, 'float32', VIT_H_1024, None)
      for name in ('auto', 'reference', 'xla')
      for platform in ('cpu', 'gpu', 'tpu')
    ),
    ('pallas_tpu', 'tpu', 'float32', VIT_H_1024, None),
    ('pallas_tpu', None, 'bfloat16', VIT_B_512, None),
  ],
)
def test_unsupported_implementations_explain_why(name, platform, dtype, shape, message):
  reason = why_not(name, platform, dtype, *shape)
  assert reason is None if message is None else message in reason


@pytest.mark.parametrize(
  'capability, shape, message',
  [
    (AMPERE, VIT_B_512, None),
    (HOPPER, VIT_H_1024, None),
    (
      AMPERE,
      VIT_H_1024,
      '80 channels and 128 for relative positions; on a GPU of compute capability 8.0 it supports 128',
    ),
    (TURING, VIT_B_512, 'it needs a GPU of compute capability 8.0, not 7.5'),
    (None, VIT_B_512, r'JAX sees no CUDA GPU; install jax\[cuda12\]'),
  ],
)
def test_cudnn_depends_on_the_gpu(capability, shape, message):
  with mock.patch.object(cudnn, 'compute_capability', lambda: capability):
    reason = why_not('cudnn', 'gpu', 'bfloat16', *shape)
  assert reason is None if message is None else re.search(message, reason)


@pytest.mark.parametrize(
  'capability, dtype, shapes, expected',
  [
    (HOPPER, 'bfloat16', [VIT_H_1024], 'cudnn'),
    (AMPERE, 'bfloat16', [VIT_B_512], 'cudnn'),
    (AMPERE, 'bfloat16', [VIT_H_1024], 'pallas_gpu'),  # 208 channels in all, more than cuDNN's 128
    (AMPERE, 'bfloat16', [WINDOW, VIT_H_1024], 'pallas_gpu'),  # one for all blocks
    (AMPERE, 'bfloat16', [(110, 576, 48)], 'xla'),  # 24 x 24 tokens: small logits
    (AMPERE, 'float32', [VIT_B_512], 'xla'),
    (TURING, 'bfloat16', [VIT_B_512], 'xla'),
    (None, 'bfloat16', [VIT_H_1024], 'xla'),  # an unknown GPU
  ],
)
def test_auto_on_gpus_takes_our_kernel_where_cudnn_cannot_and_logits_are_large(capability, dtype, shapes, expected):
  with mock.patch.object(cudnn, 'compute_capability', lambda: capability):
    assert fastest('gpu', *((jnp.dtype(dtype), *shape) for shape in shapes)) == expected
    if expected == 'pallas_gpu':
      assert why_not(expected, 'gpu', dtype, *shapes[-1]) is None


def lowered(platform: str, dtype, grid=(27, 27), capability=HOPPER, name='auto', remat='none', jaxpr=False) -> str:
  """Lowers the forward and backward program for a platform, from this one; the jaxpr of it if `jaxpr`."""
  tokens = grid[0] * grid[1]
  arrays = [jax.ShapeDtypeStruct((2, 2, tokens, last), dtype) for last in (64, 64, 64, *grid)]

  def loss(*arrays):
    run = functools.partial(attention, grid=grid, implementation=name)
    return Execution(remat).rematerialised(run)(*arrays).astype(jnp.float32).sum()

  with (
    mock.patch.object(cudnn, 'compute_capability', lambda: capability),
    mock.patch('jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version', lambda: 91000),
    mock.patch('jax._src.cudnn.fused_attention_stablehlo.check_compute_capability', lambda _: capability == HOPPER),
  ):
    jax.clear_caches()
    traced = jax.jit(jax.grad(loss, argnums=range(5))).trace(*arrays)
    return str(traced.jaxpr) if jaxpr else traced.lower(lowering_platforms=(platform,)).as_text()


def on_an_h100():
  """An abstract mesh of one GPU. Since JAX 0.12, Pallas' Triton backend needs the device it lowers for."""
  fields = {'device_kind': 'NVIDIA H100 80GB HBM3', 'num_cores': 132, 'platform': 'gpu'}
  known = inspect.signature(jax.sharding.AbstractDevice).parameters
  device = jax.sharding.AbstractDevice(**{name: value for name, value in fields.items() if name in known})
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ('gpu',), abstract_device=device))


@pytest.mark.slow
def test_programs_for_tpus_use_the_tpu_kernels():
  text = lowered('tpu', jnp.bfloat16)
  assert text.count('tpu_custom_call') >= 2 and 'x729x729x' not in text


def test_programs_for_nvidia_gpus_use_cudnn():
  text = lowered('cuda', jnp.bfloat16)
  assert '__cudnn$fmha' in text and 'Backward' in text and 'x729x729x' not in text


def test_our_gpu_kernels_are_triton_programs():
  with on_an_h100():
    text = lowered('cuda', jnp.bfloat16, name='pallas_gpu')
  assert text.count('xla.gpu.triton') == 3 and 'x729x729x' not in text


def test_cudnn_runs_forward_once_unless_everything_is_recomputed():
  """Its output and logsumexp are kept by the primitive's name, because JAX names no values in it."""
  calls = {}
  for remat in ('elementwise', 'products', 'block'):
    text = lowered('cuda', jnp.bfloat16, name='cudnn', remat=remat, jaxpr=True)
    calls[remat] = text.count('dot_product_attention_fwd_wrapper[')
  assert calls == {'elementwise': 1, 'products': 1, 'block': 2}


def test_auto_lowers_our_kernels_for_an_ampere_with_a_large_grid():
  with on_an_h100():
    text = lowered('cuda', jnp.bfloat16, grid=(64, 64), capability=AMPERE)
  assert text.count('xla.gpu.triton') == 3 and 'x4096x4096x' not in text


@pytest.mark.parametrize(
  'platform, dtype, capability',
  [('cuda', jnp.float32, HOPPER), ('cuda', jnp.bfloat16, None), ('cpu', jnp.bfloat16, HOPPER)],
)
def test_xla_is_used_if_no_kernel_is_supported(platform, dtype, capability):
  text = lowered(platform, dtype, capability=capability)
  assert 'custom_call' not in text and 'x729x729x' in text
