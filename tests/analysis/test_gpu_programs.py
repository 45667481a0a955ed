"""Programs as the compiler for NVIDIA GPUs writes them: library calls, kernels, collectives in and between hosts."""

import numpy as np
import pytest

from ditsam_jax.analysis.chips import CHIPS
from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.figures import METHOD
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations
from ditsam_jax.analysis.replica_groups import groups
from ditsam_jax.analysis.roofline import roofline
from ditsam_jax.analysis.targets import parse_topology


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
  assert found.result == f'{dtype}[512,96]'


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
  assert (gather.kind, gather.chips, gather.crossing, gather.overlapped) == ('all-gather', 4, 0, False)
  assert gather.sent == 3 * (8 * 4 * 4 + 8 * 4 * 2)
  assert (reduce.kind, reduce.chips, reduce.crossing, reduce.overlapped) == ('all-reduce', 2, reduce.sent, True)
  h100, network = CHIPS['h100'], 50e9
  assert roofline(h100, [], [gather], network).links == pytest.approx(gather.sent / 450e9)
  assert roofline(h100, [], [reduce], network).links == pytest.approx(reduce.sent / 50e9)
  assert not any(c.crossing for c in collectives(module(TWO_HOSTS, partitions=8)))  # a TPU slice


@pytest.mark.parametrize(
  'kind, members, sent, crossing',
  [
    # A ring through a host's eight GPUs, to the next host: eight GPUs share what leaves the host.
    ('all-gather', 'replica_groups=[1,16]<=[16], dimensions={0}', 15 * 80, 15 * 80 / 8),
    ('all-reduce', 'replica_groups=[1,16]<=[16], to_apply=%add', 2 * 75, 2 * 75 / 8),
    ('all-gather', 'replica_groups=[4,4]<=[4,4]T(1,0), dimensions={0}', 3 * 80, 3 * 80 / 2),  # two of each host
    ('all-gather', 'replica_groups=[2,8]<=[16], dimensions={0}', 7 * 80, 0),  # hosts apart
    ('all-gather', 'replica_groups={{0,1,2,8},{9,10,11,3}}, dimensions={0}', 3 * 80, 3 * 80),  # one is alone
    # Each GPU sends 5 bytes to every other one.
    ('all-to-all', 'replica_groups=[1,16]<=[16], dimensions={0}', 75, 5 * 8),
    ('collective-permute', 'source_target_pairs={{0,1},{1,0}}', 80, 0),
    ('collective-permute', 'source_target_pairs={{7,8},{8,7}}', 80, 80),
  ],
)
def test_the_part_of_a_collective_that_leaves_the_host(kind, members, sent, crossing):
  """Sixteen GPUs in two hosts, each with 80 bytes."""
  text = f'  %a = s8[80]{{0}} parameter(0)\n  ROOT %r = s8[80]{{0}} {kind}(%a), channel_id=1, {members}'
  [found] = collectives(module(text, partitions=16), per_host=8)
  assert (found.sent, found.crossing) == (pytest.approx(sent), pytest.approx(crossing))
  h100, l4 = parse_topology('h100:8x2'), parse_topology('l4:8x2')
  within = sent - crossing
  for target, network in ((h100, 50e9), (l4, 12.5e9 / 8)):
    time = max(within / target.chip.ici_bandwidth, crossing / network)
    assert roofline(target.chip, [], [found], target.network_bandwidth).links == pytest.approx(time)


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


STEP = (
  TWO_HOSTS.replace('[8,4]', '[4096,768]').replace('[32,4]', '[16384,768]')
  + """
  %y = f32[768,3072]{1,0} parameter(2)
  %z = bf16[768,3072]{1,0} parameter(3)
  %bf16 = bf16[4096,3072]{1,0} dot(%b, %z), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %f32 = f32[768,768]{1,0} dot(%y, %y), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %sum = f32[4096,768]{1,0} add(%a, %a)"""
)
# Its microseconds in version 2 of the analysis: compute, memory, links.
MICROSECONDS = {
  'v5e': (98.11, 164, 283.1),
  'v5p': (50, 27.65, 94.37),
  'v6e': (0, 131.1, 141.6),
  'a100-40': (85.18, 52.89, 554),
  'a100-80': (85.18, 20.12, 586.8),
  'h100': (26.87, 37.22, 313.4),
  'b200': (11.81, 15.03, 287.7),
  'l4': (159.7, 555.9, 5080),
  't4': (2833, 125.8, 4606),
  'rtx4090': (160.9, 52.13, 5583),
}


def test_the_analysis_gets_a_new_version_when_its_figures_change():
  """If this fails, figures of compiled programs have changed: raise figures.METHOD and record the new ones."""
  assert METHOD == 2
  found = module(STEP, partitions=8)
  for name, chip in CHIPS.items():
    network = chip.network_bandwidth(4) if chip.silicon else None
    time = roofline(chip, operations(found), collectives(found, 4 if chip.silicon else None), network)
    assert [1e6 * part for part in (time.compute, time.hbm, time.links)] == pytest.approx(
      MICROSECONDS[name], rel=1e-3
    ), name
