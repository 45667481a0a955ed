"""FLOPs and bytes of compiled programs, against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations


def work(function, *shapes, dtype=jnp.float32, **options):
  """Compiles a function of arrays of these shapes; returns its FLOPs and bytes."""
  args = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
  found = operations(Module(jax.jit(function, **options).lower(*args).compile().as_text()))
  return sum(o.flops * o.times for o in found), sum(o.bytes * o.times for o in found)


def test_products_cost_two_flops_per_multiply_add():
  flops, _ = work(lambda a, b: a @ b, (5, 64, 32), (5, 32, 16))
  assert flops == 2 * 5 * 64 * 32 * 16


@pytest.mark.parametrize('stride, padding', [(1, 1), (2, 1), (3, 0)])
def test_convolutions_do_not_count_padding(stride, padding):
  def convolution(x, kernel):
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )

  flops, _ = work(convolution, (2, 9, 9, 4), (3, 3, 4, 6))
  places = [
    (o, k) for o in range((9 + 2 * padding - 3) // stride + 1) for k in range(3) if 0 <= o * stride + k - padding < 9
  ]
  assert flops == 2 * 2 * 4 * 6 * len(places) ** 2


def test_loops_are_multiplied_by_their_trip_count():
  def layers(x, weights):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

  flops, _ = work(layers, (64, 128), (7, 128, 128))
  assert flops == 7 * 2 * 64 * 128 * 128


def test_elementwise_work_is_fused_and_moves_each_array_once():
  flops, moved = work(lambda a, b: jnp.tanh(a) * b + 1, (1000, 100), (1000, 100))
  assert flops == 0 and moved == 3 * 4 * 1000 * 100


def test_slices_and_in_place_updates_move_only_their_own_size():
  def write(rows):
    def body(i, out):
      row = jax.lax.dynamic_slice_in_dim(rows, i, 1)
      return jax.lax.dynamic_update_slice_in_dim(out, row * 2, 2 * i, 0)

    return jax.lax.fori_loop(0, 50, body, jnp.zeros((100, 4096)))

  _, moved = work(write, (50, 4096))
  row = 4 * 4096
  assert moved == pytest.approx(100 * row + 50 * 2 * row, rel=0.01)  # zeros written, then 50 rows read and written


def test_on_chip_memory_is_free():
  text = """HloModule step

%double (p: f32[256]) -> f32[256] {
  %p = f32[256]{0:T(256)S(1)} parameter(0)
  ROOT %add = f32[256]{0:T(256)} add(%p, %p)
}

ENTRY %main (a: f32[256]) -> f32[256] {
  %a = f32[256]{0:T(256)} parameter(0)
  %copy-start = (f32[256]{0:T(256)S(1)}, f32[256]{0:T(256)}, u32[]{:S(2)}) copy-start(%a)
  %copy-done = f32[256]{0:T(256)S(1)} copy-done(%copy-start)
  %inner = f32[256]{0:T(256)S(1)} fusion(%copy-done), kind=kLoop, calls=%double
  ROOT %outer = f32[256]{0:T(256)} fusion(%inner), kind=kLoop, calls=%double
}
"""
  assert [o.bytes for o in operations(Module(text))] == [1024, 1024]  # read by the copy, written by the last


def test_batched_products_written_as_dilated_convolutions():
  """The TPU compiler's form of a product with two batch axes, 16 x 3: each batch is multiplied with its own only."""
  text = """HloModule step

ENTRY %main (a: bf16[16,3,12,32], b: bf16[16,3,32,12]) -> f32[16,3,12,12] {
  %a = bf16[16,3,12,32]{3,2,1,0} parameter(0)
  %b = bf16[16,3,32,12]{3,2,1,0} parameter(1)
  ROOT %c = f32[16,3,12,12]{3,2,1,0} convolution(%a, %b), window={size=16x3 stride=15x2 lhs_dilate=16x3}, dim_labels=01bf_01io->01bf
}
"""  # noqa: E501
  (found,) = operations(Module(text))
  assert found.flops == 2 * 16 * 3 * 12 * 12 * 32
  assert found.bytes == 2 * 2 * 16 * 3 * 12 * 32 + 4 * 16 * 3 * 12 * 12


def test_flops_agree_with_xla_without_loops():
  """XLA also counts elementwise work, a small share of a product this size."""
  function, shapes = lambda x, w: jax.nn.softmax(x @ w), [(256, 512), (512, 1024)]
  flops, _ = work(function, *shapes)
  cost = jax.jit(function).lower(*[jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]).compile().cost_analysis()
  np.testing.assert_allclose(flops, cost['flops'], rtol=0.02)


def test_kernels_declare_their_cost():
  text = """HloModule step

ENTRY %main (a: bf16[4,64]) -> bf16[4,64] {
  %a = bf16[4,64]{1,0} parameter(0)
  ROOT %k = bf16[4,64]{1,0} custom-call(%a), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"TUzv","cost_estimate":{"flops":"31250644992","transcendentals":"69755904","bytes_accessed":"72963072"}}}
}
"""  # noqa: E501
  (found,) = operations(Module(text))
  assert (found.flops, found.bytes) == (31250644992, 72963072)


def test_kernels_do_not_pay_for_arrays_in_on_chip_memory():
  """Half of the bytes that the kernel reads and writes are on the chip."""
  text = """HloModule step

ENTRY %main (a: bf16[4,64]) -> bf16[4,64] {
  %a = bf16[4,64]{1,0} parameter(0)
  %b = bf16[4,64]{1,0:S(1)} copy(%a)
  %k = (bf16[4,64]{1,0:S(1)}, bf16[4,64]{1,0}) custom-call(%a, %b), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"8","bytes_accessed":"5120"}}}
  ROOT %out = bf16[4,64]{1,0} get-tuple-element(%k), index=1
}
"""  # noqa: E501
  assert [o.bytes for o in operations(Module(text)) if o.name == 'k'] == [2560]


def test_reserving_memory_is_free():
  """What a loop fills, the TPU compiler reserves without writing zeros."""
  text = """HloModule step

ENTRY %main () -> bf16[4,64] {
  ROOT %buffer = bf16[4,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
}
"""
  assert operations(Module(text)) == []
