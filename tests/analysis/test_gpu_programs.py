"""Programs as the compiler for NVIDIA GPUs writes them: library calls, kernels, collectives in and between hosts."""

import numpy as np
import pytest

from ditsam_jax.analysis.chips import CHIPS
from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations
from ditsam_jax.analysis.replica_groups import groups
from ditsam_jax.analysis.roofline import roofline


def module(instructions: str, partitions: int = 1) -> Module:
  return Module(
    f'HloModule step, num_partitions={partitions}\n\nENTRY %main (a: f32[]) -> f32[] {{\n{instructions}\n}}\n'
  )


def work(instructions: str):
  found = operations(module(instructions))
  assert len(found) == 1
  return found[0]


@pytest.mark.parametrize('dtype, size', [('bf16', 2), ('f32', 4)])
def test_products_in_cublas(dtype, size):
  """The scratch memory, s8, is not traffic."""
  found = work(f"""
  %a = {dtype}[512,768]{{1,0}} parameter(0)
  %b = {dtype}[768,96]{{1,0}} parameter(1)
  ROOT %c = ({dtype}[512,96]{{1,0}}, s8[4194304]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={{op_name="jit(step)/dot_general"}}, backend_config={{"gemm_backend_config":{{"beta":0,"dot_dimension_numbers":{{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}},"epilogue":"BIAS"}}}}""")  # noqa: E501
  assert found.flops == 2 * 512 * 96 * 768
  assert found.bytes == size * (512 * 768 + 768 * 96 + 512 * 96)
  assert found.f32 == (dtype == 'f32')


@pytest.mark.parametrize('name', ['Forward', 'BackwardInput', 'BackwardFilter'])
def test_convolutions_in_cudnn_cost_the_same_in_all_directions(name):
  image, kernel, out = 'bf16[2,9,9,4]{3,2,1,0}', 'bf16[6,3,3,4]{3,2,1,0}', 'bf16[2,9,9,6]{3,2,1,0}'
  first, second, result = {
    'Forward': (image, kernel, out),
    'BackwardInput': (out, kernel, image),
    'BackwardFilter': (image, out, kernel),
  }[name]
  found = work(f"""
  %a = {first} parameter(0)
  %b = {second} parameter(1)
  ROOT %c = ({result}, u8[0]{{0}}) custom-call(%a, %b), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$conv{name}" """)  # noqa: E501
  taps = sum(0 <= o + k - 1 < 9 for o in range(9) for k in range(3))  # per axis, without padding
  assert found.flops == 2 * 2 * 4 * 6 * taps**2


@pytest.mark.parametrize('backward, products', [(False, 2), (True, 5)])
def test_attention_in_cudnn(backward, products):
  arrays = 6 if backward else 3
  parameters = '\n'.join(f'  %p{i} = bf16[8,76,3,48]{{3,2,1,0}} parameter({i})' for i in range(arrays))
  found = work(f"""{parameters}
  ROOT %c = (bf16[8,3,76,48]{{3,1,2,0}}, u8[0]{{0}}) custom-call({', '.join(f'%p{i}' for i in range(arrays))}), custom_call_target="__cudnn$fmhaSoftmax{'Backward' * backward}", backend_config={{"cudnn_fmha_backend_config": {{"algorithm": {{"tuning_knobs": {{"17": "1"}}}}, "intermediate_tensor_shape": {{"element_type": "BF16", "dimensions": ["8", "3", "76", "76"], "layout": {{}}}}}}}}""")  # noqa: E501
  assert found.flops == products * 2 * 8 * 3 * 76 * 76 * 48


@pytest.mark.parametrize(
  'kernel, arrays, of_queries, of_channels',
  [('attention_forward', 5, 2, 1), ('attention_queries', 8, 3, 2), ('attention_keys', 8, 4, 1)],
)
def test_our_triton_kernels(kernel, arrays, of_queries, of_channels):
  """Products with q, k, v and dout have 64 channels, those with the relative positions' 32."""
  wide, narrow = 'bf16[2,3,128,64]{3,2,1,0}', 'bf16[2,3,128,32]{3,2,1,0}'
  shapes = [wide, wide, wide, narrow, 'bf16[1,1,128,32]{3,2,1,0}', wide, 'f32[2,3,128]{2,1,0}', 'f32[2,3,128]{2,1,0}']
  parameters = '\n'.join(f'  %p{i} = {shapes[i]} parameter({i})' for i in range(arrays))
  found = work(f"""{parameters}
  ROOT %c = ({wide}, f32[2,3,128]{{2,1,0}}) custom-call({', '.join(f'%p{i}' for i in range(arrays))}), custom_call_target="__gpu$xla.gpu.triton", metadata={{op_name="jit(step)/transpose(jvp(jit(compute)))/{kernel}/pallas_call"}}, backend_config={{ir = "ML\\EF\\"(", num_warps = 4 : i32}}""")  # noqa: E501
  assert found.flops == 2 * 2 * 3 * 128 * 128 * (64 * of_queries + 32 * of_channels)


TWO_HOSTS = """
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[8,4]{1,0} parameter(1)
  %gather-start = ((f32[8,4]{1,0}, bf16[8,4]{1,0}), (f32[32,4]{1,0}, bf16[32,4]{1,0})) all-gather-start(%a, %b), channel_id=1, replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, dimensions={0}, backend_config={"collective_backend_config":{"is_sync":true}}
  %gather-done = (f32[32,4]{1,0}, bf16[32,4]{1,0}) all-gather-done(%gather-start)
  %reduce-start = f32[8,4]{1,0} all-reduce-start(%a), channel_id=2, replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}, to_apply=%add, backend_config={"collective_backend_config":{"is_sync":false}}
  ROOT %reduce-done = f32[8,4]{1,0} all-reduce-done(%reduce-start)"""  # noqa: E501


def test_collectives_within_and_between_hosts():
  """Eight GPUs in two hosts: weights are gathered within a host, gradients are reduced between them."""
  gather, reduce = collectives(module(TWO_HOSTS, partitions=8), per_host=4)
  assert (gather.kind, gather.chips, gather.between_hosts, gather.overlapped) == ('all-gather', 4, False, False)
  assert gather.sent == 3 * (8 * 4 * 4 + 8 * 4 * 2)
  assert (reduce.kind, reduce.chips, reduce.between_hosts, reduce.overlapped) == ('all-reduce', 2, True, True)
  h100, network = CHIPS['h100'], 50e9
  assert roofline(h100, [], [gather], network).links == pytest.approx(gather.sent / 450e9)
  assert roofline(h100, [], [reduce], network).links == pytest.approx(reduce.sent / 50e9)
  assert not any(c.between_hosts for c in collectives(module(TWO_HOSTS, partitions=8)))  # a TPU slice


def test_combined_collectives_write_all_their_results():
  found = operations(module(TWO_HOSTS, partitions=8))
  own, whole = 8 * 4 * (4 + 2), 32 * 4 * (4 + 2)
  assert [o.bytes for o in found] == [own + whole, 2 * 8 * 4 * 4]


@pytest.mark.parametrize(
  'text, expected',
  [
    ('{{0,1},{2,3}}', [[0, 1], [2, 3]]),
    ('[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('[4,2]<=[2,4]T(1,0)', [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ('{}', [list(range(8))]),
    ("mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("mesh['a'=2,'b'=4] {'a'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'x'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("mesh['x'=4,'y'=1,'z'=2], device_ids=([2,4]T(1,0)) {'z'}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
  ],
)
def test_replica_groups_in_all_notations(text, expected):
  found = groups(f', channel_id=1, replica_groups={text}, dimensions={{0}}', 8)
  assert sorted(sorted(map(int, group)) for group in found) == sorted(sorted(group) for group in expected)


def test_f32_products_take_the_peak_of_tf32():
  found = work("""
  %a = f32[512,768]{1,0} parameter(0)
  %b = f32[768,512]{1,0} parameter(1)
  ROOT %c = f32[512,512]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}""")
  tpu, gpu = CHIPS['v5e'], CHIPS['h100']
  np.testing.assert_allclose(roofline(gpu, [_only_flops(found)], []).compute, found.flops / gpu.f32_flops)
  np.testing.assert_allclose(roofline(tpu, [_only_flops(found)], []).compute, found.flops / tpu.flops)


def _only_flops(operation):
  return operation.__class__(operation.flops, 0, 1, False, '', operation.f32)
