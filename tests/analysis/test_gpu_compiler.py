"""The real compiler for NVIDIA GPUs, which needs no GPU: counts of programs whose cost is known."""

import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations
from ditsam_jax.analysis.targets import devices_of, lowering, parse_topology
from ditsam_jax.ops.attention import attention

pytestmark = pytest.mark.skipif(
  importlib.util.find_spec('jax_cuda12_plugin') is None and importlib.util.find_spec('jax_cuda13_plugin') is None,
  reason="JAX's CUDA plugin is not installed (the extra 'cuda12' or 'cuda13')",
)


def test_gathered_weights_and_gradients_between_two_hosts():
  """Weights are sharded over the two GPUs of a host, the batch over all four."""
  target = parse_topology('a100-40:2x2')
  mesh = jax.make_mesh(
    (2, 2), ('data', 'fsdp'), devices=devices_of(target), axis_types=(jax.sharding.AxisType.Auto,) * 2
  )
  rows, shards, whole = (NamedSharding(mesh, P(*spec)) for spec in ((('data', 'fsdp'),), ('fsdp',), ()))

  def step(x, weight):
    def loss(weight):
      return jnp.tanh(x @ jax.lax.with_sharding_constraint(weight, whole)).astype(jnp.float32).sum()

    return jax.grad(loss)(weight)

  arguments = (
    jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16, sharding=rows),
    jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=shards),
  )
  compiled = jax.jit(step, out_shardings=shards).lower(*arguments).compile(compiler_options=target.options)
  module = Module(compiled.as_text())
  assert sum(o.flops * o.times for o in operations(module)) == 2 * 2 * 1024 * 512 * 512  # forward, and the gradient
  found = collectives(module, target.per_host)
  (gather,) = [c for c in found if c.kind == 'all-gather']
  assert (gather.chips, gather.crossing, gather.bytes) == (2, 0, 512 * 512 * 2 / 2)
  assert any(c.crossing for c in found if c.kind in ('all-reduce', 'reduce-scatter'))


@pytest.mark.parametrize('topology, call', [('a100-80:1', 'triton'), ('h100:1', '__cudnn$fmha')])
def test_attention_on_a_64_by_64_grid(topology, call):
  """cuDNN supports its 192 channels on a Hopper; before, 'auto' is our kernel."""
  target = parse_topology(topology)
  place = jax.sharding.SingleDeviceSharding(devices_of(target)[0])
  arrays = [jax.ShapeDtypeStruct((1, 1, 4096, width), jnp.bfloat16, sharding=place) for width in (64,) * 5]
  with lowering(target):
    function = jax.jit(lambda *arrays: attention(*arrays, grid=(64, 64)))
    text = function.lower(*arrays).compile(compiler_options=target.options).as_text()
  assert call in text and '4096,4096' not in text
  flops = sum(o.flops * o.times for o in operations(Module(text)))
  channels = {'triton': 2 * 64 + 128, '__cudnn$fmha': 2 * 192}[call]  # cuDNN: values as wide as keys
  assert flops == 2 * 4096 * 4096 * channels
