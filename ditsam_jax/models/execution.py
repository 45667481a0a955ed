"""How the image encoder's blocks run: affects time and memory, not results."""

import dataclasses
from collections.abc import Callable

import jax

# What is saved for a block's backward pass besides its input; the rest is recomputed.
KEPT = ('qkv', 'attention', 'attended', 'hidden')
REMAT = {
  'named': jax.checkpoint_policies.save_only_these_names(*KEPT),
  'named3': jax.checkpoint_policies.save_only_these_names('qkv', 'attention', 'attended'),
  'named2': jax.checkpoint_policies.save_only_these_names('qkv', 'attention', 'hidden'),
  'none': jax.checkpoint_policies.everything_saveable,
  'attention': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # linear layers saved, attention recomputed
  'block': jax.checkpoint_policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class Execution:
  """Execution options, passed to a model's call. The defaults suit inference."""

  remat: str = 'none'  # one of REMAT
  scan: bool = False  # if all blocks are alike, compile one block and scan over it
  attention: str = 'auto'  # one of ops.attention.IMPLEMENTATIONS

  def rematerialised(self, function: Callable) -> Callable:
    """Wraps a block's function in the rematerialisation policy of `remat`."""
    if self.remat == 'none':
      return function
    return jax.checkpoint(function, policy=REMAT[self.remat], prevent_cse=not self.scan)
