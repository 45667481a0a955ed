"""How the image encoder's blocks run: same results, different time and memory."""

import dataclasses
from collections.abc import Callable

import jax

# What the backward pass of a block finds saved, besides the block's input, and what it computes once more.
REMAT = {
  'none': jax.checkpoint_policies.everything_saveable,
  'attention': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # linear layers saved, attention recomputed
  'block': jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
  """Passed to a model's call; the defaults suit inference."""

  remat: str = 'none'  # one of REMAT
  scan: bool = False  # compile one block and loop over it where all blocks are alike, instead of each on its own
  attention: str = 'auto'  # one of ops.attention.IMPLEMENTATIONS

  def rematerialised(self, function: Callable) -> Callable:
    """The function of a block, saving for its backward pass what `remat` says."""
    if self.remat == 'none':
      return function
    return jax.checkpoint(function, policy=REMAT[self.remat], prevent_cse=not self.scan)
