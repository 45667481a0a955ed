"""Where the operations of a compiled program come from, and which of them move most."""

import inspect

import jax
import jax.numpy as jnp

from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import heaviest, operations

TABLES = """HloModule step

FileNames
1 "/home/a/ditsam_jax/ditsam_jax/models/layers.py"
2 "/venv/lib/python3.12/site-packages/flax/nnx/nn/linear.py"
3 "/home/a/ditsam_jax/ditsam_jax/models/image_encoder.py"

FunctionNames
1 "Linear.__call__"

FileLocations
1 {file_name_id=3 function_name_id=1 line=12 end_line=12 column=1 end_column=9}
2 {file_name_id=1 function_name_id=1 line=34 end_line=34 column=1 end_column=9}
3 {file_name_id=2 function_name_id=1 line=56 end_line=56 column=1 end_column=9}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=2 parent_frame_id=3}

"""
BODY = """ENTRY %main (a: bf16[64,64]) -> bf16[64,64] {
  %a = bf16[64,64]{1,0} parameter(0)
  %dot.1 = bf16[64,64]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}, metadata={op_name="jit(step)/dot_general" stack_frame_id=3}
  %copy-start.7 = (bf16[64,64]{1,0:S(1)}, bf16[64,64]{1,0}, u32[]{:S(2)}) copy-start(%dot.1)
  %copy-done.7 = bf16[64,64]{1,0:S(1)} copy-done(%copy-start.7)
  %old = bf16[64,64]{1,0} add(%copy-done.7, %copy-done.7), metadata={op_name="jit(step)/add" source_file="/home/b/own.py" source_line=7}
  %twice = bf16[64,64]{1,0} add(%old, %old), metadata={op_name="batch[\\'mask\\']" stack_frame_id=4}
  ROOT %bare = bf16[64,64]{1,0} negate(%old)
}
"""  # noqa: E501


def test_lines_are_those_of_the_innermost_own_code():
  """Not of libraries; a copy has the line of the value that it copies; both forms of metadata are read."""
  found = {operation.name: operation for operation in operations(Module(TABLES + BODY))}
  product = 'ditsam_jax/models/layers.py:34 < ditsam_jax/models/image_encoder.py:12'
  assert found['dot.1'].source == found['copy-start.7'].source == product
  assert found['copy-start.7'].op_name == 'jit(step)/dot_general'
  assert found['twice'].source == product and found['twice'].op_name == "batch['mask']"
  assert found['old'].source == found['bare'].source == 'b/own.py:7'


def test_without_tables_or_metadata_lines_are_unknown():
  found = operations(Module('HloModule step\n\n' + BODY.replace('metadata=', 'nothing=')))
  assert {operation.source for operation in found if operation.name == 'dot.1'} == {''}


def test_operations_that_move_most_come_first_with_the_line_that_made_them():
  def step(x, w):
    small = jnp.tanh(x) * 2
    large = x @ w  # the line looked for
    return small, large

  line = inspect.getsourcelines(step)[1] + 2
  shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), jax.ShapeDtypeStruct((64, 4096), jnp.float32)
  groups = heaviest(operations(Module(jax.jit(step).lower(*shapes).compile().as_text())))[:2]
  assert [sum(o.bytes * o.times for o in group) for group in groups] == [4 * 64 * (64 + 2 * 4096), 2 * 4 * 64 * 64]
  assert groups[0][0].source.startswith(f'analysis/{__file__.rpartition("/")[2]}:{line}')


def test_layers_of_one_line_count_together():
  def step(x, weights):
    for w in weights:
      x = x @ w
    return x

  shapes = jax.ShapeDtypeStruct((64, 64), jnp.float32), [jax.ShapeDtypeStruct((64, 64), jnp.float32)] * 3
  (group,) = heaviest(operations(Module(jax.jit(step).lower(*shapes).compile().as_text())))
  assert sum(o.times for o in group) == 3
