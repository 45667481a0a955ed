"""Run by test_attention_sharded.py on eight devices: prints errors against one device and all-gathers as JSON lines."""

import json

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ditsam_jax.ops.attention import attention
from tests.ops.attention_cases import on_cpu

GRID, PREFIX, WIDTH = (5, 6), 3, 8


def main():
  mesh = jax.make_mesh((2, 2, 2), ('data', 'fsdp', 'tensor'), axis_types=(jax.sharding.AxisType.Auto,) * 3)
  sharded = NamedSharding(mesh, PartitionSpec(('data', 'fsdp'), 'tensor'))
  for name in ('xla', 'pallas_tpu', 'auto'):
    for batch, heads in ((8, 2), (6, 3)):  # the second pair is divisible by 'data' only
      arrays = inputs(batch, heads)
      with on_cpu(name):
        program = jax.jit(lambda *a, name=name: gradients(name, *a))
        alone = program(*arrays)
        if heads % 2 == 0:
          arrays = [jax.device_put(array, sharded) for array in arrays]
        with jax.set_mesh(mesh):
          together = program(*arrays)
          text = program.lower(*arrays).compile().as_text()
      errors = [float(np.abs(np.asarray(one) - np.asarray(other)).max()) for one, other in zip(alone, together)]
      print(
        json.dumps(
          dict(
            name=name,
            batch=batch,
            error=max(errors),
            gathers=text.count('all-gather('),
            sharding=str(together[0].sharding.spec),
          )
        )
      )


def inputs(batch: int, heads: int) -> list[np.ndarray]:
  tokens = GRID[0] * GRID[1]
  rng = np.random.default_rng(batch)
  return [
    rng.normal(size=(batch, heads, *shape)).astype(np.float32)
    for shape in (*((PREFIX + tokens, WIDTH),) * 4, *((tokens, side) for side in GRID))
  ]


def gradients(name: str, dout, q, k, v, rel_h, rel_w):
  """Returns the output and the gradients of all arrays."""

  def forward(*arrays):
    return attention(*arrays, grid=GRID, prefix=PREFIX, implementation=name)

  out, backward = jax.vjp(forward, q, k, v, rel_h, rel_w)
  return out, *backward(dout)
