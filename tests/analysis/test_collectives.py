"""Bytes of collectives, against programs whose traffic follows from their shapes."""

import json

import pytest

from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
from tests.devices import run_on_devices

EXPLICIT = """
import functools, json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=(jax.sharding.AxisType.Auto,) * 2)

def found(function, *shapes, specs=P('b')):
  lowered = jax.jit(jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=False)).lower(
      *[jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])
  return [[c.kind, c.chips, c.sent, c.times] for c in collectives(Module(lowered.compile().as_text()))]

def loop(x):
  inner = lambda c: jax.lax.fori_loop(0, 3, lambda i, d: jax.lax.psum(d * 0.5, 'b'), c)
  return jax.lax.scan(lambda c, _: (inner(c), None), x, None, 5)[0]

shape = (1024, 32)
one_layer = lambda x, w: jnp.tanh(x @ w).sum()
place = lambda *spec: NamedSharding(mesh, P(*spec))
args = (jax.ShapeDtypeStruct((4096, 64), jnp.float32, sharding=place('b')),
        jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=place('b')))
step = jax.jit(lambda x, w: one_layer(x, jax.lax.with_sharding_constraint(w, place())))
print(json.dumps({
  'all-gather': found(lambda x: jax.lax.all_gather(x, 'b', tiled=True)[:256], shape),
  'reduce-scatter': found(lambda x: jnp.tile(jax.lax.psum_scatter(x, 'b', tiled=True), (4, 1)), shape),
  'all-reduce': found(lambda x: jax.lax.psum(x, ('a', 'b')), shape),
  'all-to-all': found(lambda x: jax.lax.all_to_all(x, 'b', 0, 0, tiled=True), shape),
  'collective-permute': found(lambda x: jax.lax.ppermute(x, 'b', [(i, (i + 1) % 4) for i in range(4)]), shape),
  'loop': found(loop, shape),
  'gathered weight': [[c.kind, c.chips, c.sent, c.times]
                      for c in collectives(Module(step.lower(*args).compile().as_text()))],
}))
"""


@pytest.fixture(scope='module')
def explicit():
  return json.loads(run_on_devices(EXPLICIT, 8))


SHARD = 256 * 32 * 4  # bytes of a quarter of f32[1024, 32]


@pytest.mark.parametrize(
  'kind, chips, sent',
  [
    ('all-gather', 4, 3 * SHARD),  # its own shard to three others
    ('reduce-scatter', 4, 3 / 4 * SHARD),
    ('all-reduce', 8, 2 * 7 / 8 * SHARD),
    ('all-to-all', 4, 3 / 4 * SHARD),
    ('collective-permute', 8, SHARD),
  ],
)
def test_bytes_sent_follow_from_the_shapes(explicit, kind, chips, sent):
  assert explicit[kind] == [[kind, chips, sent, 1]]


def test_collectives_in_nested_loops_are_multiplied_by_the_trip_counts(explicit):
  assert explicit['loop'] == [['all-reduce', 4, 2 * 3 / 4 * SHARD, 15]]


def test_gathering_a_sharded_weight_is_one_all_gather(explicit):
  gathers = [row for row in explicit['gathered weight'] if row[0] == 'all-gather']
  assert gathers == [['all-gather', 4, 3 * 16 * 32 * 4, 1]]


# A minimal module with the collectives as the TPU compiler writes them.
ASYNCHRONOUS = """HloModule step, num_partitions=4

%start (p: bf16[16,8]) -> (bf16[16,8], bf16[64,8], u32[]) {
  %p = bf16[16,8]{1,0} parameter(0)
  %all-gather.1 = bf16[64,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['x'=4,'y'=1] {'x'}, dimensions={0}
  ROOT %custom-call.1 = (bf16[16,8]{1,0}, bf16[64,8]{1,0}, u32[]) custom-call(%p, %all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%beside (q: bf16[16,8], r: bf16[64,8], s: f32[32]) -> (f32[32], bf16[64,8]) {
  %q = bf16[16,8]{1,0} parameter(0)
  %r = bf16[64,8]{1,0} parameter(1)
  %s = f32[32]{0} parameter(2)
  %all-gather.2 = bf16[64,8]{1,0} all-gather(%q), channel_id=7, replica_groups=mesh['x'=4,'y'=1] {'x'}, dimensions={0}
  %tanh = f32[32]{0} tanh(%s)
  ROOT %tuple.1 = (f32[32]{0}, bf16[64,8]{1,0}) tuple(%tanh, %all-gather.2)
}

%done (t: bf16[16,8], u: bf16[64,8]) -> bf16[64,8] {
  %t = bf16[16,8]{1,0} parameter(0)
  %u = bf16[64,8]{1,0} parameter(1)
  %all-gather.3 = bf16[64,8]{1,0} all-gather(%t), channel_id=7, replica_groups=mesh['x'=4,'y'=1] {'x'}, dimensions={0}
  ROOT %custom-call.2 = bf16[64,8]{1,0} custom-call(%t, %u, %all-gather.3), custom_call_target="AsyncCollectiveDone"
}

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%scattered (v: f32[64,8]) -> f32[16,8] {
  %v = f32[64,8]{1,0} parameter(0)
  %all-reduce = f32[64,8]{1,0} all-reduce(%v), channel_id=9, replica_groups={{0,1},{2,3}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[16,8]{1,0} dynamic-slice(%all-reduce, %zero, %zero), dynamic_slice_sizes={16,8}
}

ENTRY %main (a: bf16[16,8], b: f32[32], c: f32[64,8]) -> (bf16[64,8], f32[16,8]) {
  %a = bf16[16,8]{1,0} parameter(0)
  %b = f32[32]{0} parameter(1)
  %c = f32[64,8]{1,0} parameter(2)
  %begun = (bf16[16,8]{1,0}, bf16[64,8]{1,0}, u32[]) fusion(%a), kind=kCustom, calls=%start, metadata={op_name="jit(step)/gather"}
  %kept = bf16[16,8]{1,0} get-tuple-element(%begun), index=0
  %whole = bf16[64,8]{1,0} get-tuple-element(%begun), index=1
  %meanwhile = (f32[32]{0}, bf16[64,8]{1,0}) fusion(%kept, %whole, %b), kind=kCustom, calls=%beside
  %ended = bf16[64,8]{1,0} fusion(%kept, %whole), kind=kCustom, calls=%done
  %shares = f32[16,8]{1,0} fusion(%c), kind=kCustom, calls=%scattered
  %copies = (f32[32]{0}, f32[32]{0}) collective-permute-start(%b), channel_id=11, source_target_pairs={{0,1},{1,0}}
  %copied = f32[32]{0} collective-permute-done(%copies)
  ROOT %out = (bf16[64,8]{1,0}, f32[16,8]{1,0}) tuple(%ended, %shares)
}
"""  # noqa: E501


def test_asynchronous_collectives_count_once_and_fused_reduce_scatters_are_recognised():
  found = {c.kind: c for c in collectives(Module(ASYNCHRONOUS))}
  assert len(collectives(Module(ASYNCHRONOUS))) == 3
  gather, scatter, permute = (found[kind] for kind in ('all-gather', 'reduce-scatter', 'collective-permute'))
  assert (gather.bytes, gather.chips, gather.overlapped, gather.op_name) == (
    3 * 16 * 8 * 2,
    4,
    True,
    'jit(step)/gather',
  )
  assert (scatter.bytes, scatter.chips, scatter.overlapped) == (64 * 8 * 4 / 2, 2, False)
  assert (permute.bytes, permute.overlapped) == (32 * 4, True)


@pytest.mark.parametrize(
  'groups, chips',
  [
    ('{{0,1,2,3},{4,5,6,7}}', 4),
    ('[4,2]<=[8]', 2),
    ('[2,4]<=[4,2]T(1,0)', 4),
    ('{}', 8),
    ("mesh['a'=2,'b'=4] {'b'}", 4),
    ("mesh['a'=2,'b'=4] {'a','b'}", 8),
    ("mesh['a'=8] {'a':(2)4}", 4),
  ],
)
def test_all_notations_of_replica_groups_are_parsed(groups, chips):
  text = f"""HloModule step, num_partitions=8

ENTRY %main (a: f32[8]) -> f32[8] {{
  %a = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-to-all(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}
}}
"""
  (found,) = collectives(Module(text))
  assert found.chips == chips and found.sent == 32 * (chips - 1) / chips
