"""Topologies, the table of chips, and lowering for a GPU that is not there."""

import jax.numpy as jnp
import pytest

from ditsam_jax.analysis.chips import CHIPS
from ditsam_jax.analysis.targets import lowering, parse_topology
from ditsam_jax.errors import UserError
from ditsam_jax.ops.attention import cudnn


@pytest.mark.parametrize(
  'topology, chip, count, hosts',
  [
    ('v5e:4x8', 'v5e', 32, None),
    ('v5p:2x2x4', 'v5p', 16, None),
    ('h100:8', 'h100', 8, 1),
    ('t4', 't4', 1, 1),
    ('a100-80:8x4', 'a100-80', 32, 4),
  ],
)
def test_topologies_are_parsed(topology, chip, count, hosts):
  target = parse_topology(topology)
  assert (target.chip.name, target.count) == (chip, count)
  assert (target.per_host and target.count // target.per_host) == hosts
  assert topology in (target.topology, target.chip.name)


@pytest.mark.parametrize(
  'topology, hosts', [('v5e:2x4', 1), ('v6e:4x4', 2), ('v5p:2x2x1', 1), ('v5p:2x2x2', 2), ('l4:8', 1), ('l4:2x3', 3)]
)
def test_hosts_are_counted(topology, hosts):
  assert parse_topology(topology).hosts == hosts


@pytest.mark.parametrize(
  'topology, known',
  [
    ('v5e:3x3', '2x2, 2x4, 4x4'),
    ('v9:4x4', 'v5e, v5p, v6e, a100-40'),
    ('v5p', '2x2x1'),
    ('h100:', 'h100:8x4'),
    ('a100:8', "did you mean 'a100-40' or 'a100-80'"),
    ('t4:1x1x1', 't4:8'),
  ],
)
def test_unknown_topologies_are_refused_with_known_ones(topology, known):
  with pytest.raises(UserError, match=known):
    parse_topology(topology)


def test_cards_of_one_architecture_share_a_program():
  compiler = {name: parse_topology(f'{name}:1').compiler for name in ('a100-40', 'a100-80', 'l4', 'rtx4090', 'h100')}
  assert compiler['a100-40'] == compiler['a100-80'] and compiler['l4'] == compiler['rtx4090']
  assert len(set(compiler.values())) == 3


def test_peaks_are_consistent():
  """f32 products are no faster than bf16 ones, and data sheets' orders hold."""
  for chip in CHIPS.values():
    assert chip.f32_flops is None or chip.f32_flops <= chip.flops
    assert chip.hbm_bandwidth > chip.ici_bandwidth and chip.usable_bytes <= chip.hbm_bytes
  assert parse_topology('l4:8x2').network_bandwidth == pytest.approx(12.5e9 / 8)  # GPUs share their host's adapter
  assert parse_topology('h100:8x2').network_bandwidth == pytest.approx(50e9)
  assert parse_topology('v5e:2x2').network_bandwidth is None


def test_inside_lowering_programs_are_for_the_target_gpu():
  fused = pytest.importorskip('jax._src.cudnn.fused_attention_stablehlo')
  before = fused.check_compute_capability, fused.is_cuda_compute_capability_equal, cudnn.compute_capability()
  for topology, capability in (('a100-40:1', (8, 0)), ('h100:8', (9, 0)), ('rtx4090:1', (8, 9))):
    with lowering(parse_topology(topology)):
      assert cudnn.compute_capability() == capability
      assert fused.check_compute_capability('9.0') == (capability >= (9, 0))
      assert fused.is_cuda_compute_capability_equal('8.9') == (capability == (8, 9))
      assert (cudnn.why_not(jnp.bfloat16, 80, 4116, 128) is None) == (capability >= (9, 0))
  with pytest.raises(KeyError), lowering(parse_topology('t4:1')):
    assert 'compute capability 8.0, not 7.5' in cudnn.why_not(jnp.bfloat16, 64, 1044, 64)
    raise KeyError
  assert before == (fused.check_compute_capability, fused.is_cuda_compute_capability_equal, cudnn.compute_capability())
