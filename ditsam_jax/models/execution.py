"""How the image encoder's blocks run: affects time and memory, not results."""

import dataclasses
from collections.abc import Callable

import jax

from ditsam_jax.models.layers import HIDDEN, STATISTICS
from ditsam_jax.ops.attention import ATTENTION, is_kept

# Names of what a block's backward pass reads, in arrays of C channels a token (ATTENTION also names the logsumexp).
QKV = 'qkv'  # queries, keys and values: 3
ATTENDED = 'attended'  # tokens between attention and MLP: 1
# layers.HIDDEN, before the MLP's GELU: 4; layers.STATISTICS, of its norms: two numbers a token


def _keep(*names: str) -> Callable[..., bool]:
  """A policy that keeps values by name, and what attention keeps for its backward pass if ATTENTION is among them."""
  named = jax.checkpoint_policies.save_only_these_names(*names)
  return jax.checkpoint_policies.save_from_both_policies(named, is_kept) if ATTENTION in names else named


# What is kept for a block's backward pass besides its input; the rest is recomputed. Most memory first.
REMAT = {
  'none': jax.checkpoint_policies.everything_saveable,
  # Recomputes norms, GELU, relative positions and layouts ...
  'elementwise': _keep(QKV, ATTENTION, ATTENDED, HIDDEN, STATISTICS),
  # ... and the products before attention and GELU.
  'products': _keep(ATTENTION, ATTENDED, STATISTICS),
  'block': jax.checkpoint_policies.nothing_saveable,
}
AUTO = 'auto'  # in configs: the first of `automatic` that fits the device


def automatic(platform: str) -> tuple[str, ...]:
  """What a platform ('cpu', 'tpu', 'gpu') should try, fastest first.

  On accelerators, keeping everything is slower than recomputing what is elementwise: it moves more bytes. On CPUs,
  recomputing costs a sixth of the time and may save nothing, so it has to be asked for.
  """
  return ('none',) if platform == 'cpu' else ('elementwise', 'products', 'block')


@dataclasses.dataclass(frozen=True)
class Execution:
  """Execution options, passed to a model's call. The defaults suit inference."""

  remat: str = 'none'  # one of REMAT
  scan: bool = False  # if all blocks are alike, compile one block and scan over it
  attention: str = 'auto'  # one of ops.attention.IMPLEMENTATIONS
  # For TPUs, whose memory is tiled, so that reshaping and transposing copy: products keep their three axes, and
  # queries, keys and values come from a product each, in the layout of the attention kernel.
  tiled: bool = False

  def rematerialised(self, function: Callable, *, scanned: bool = False) -> Callable:
    """Wraps a block's function in the rematerialisation policy of `remat`.

    Outside of a scan (`scanned`), XLA would merge the recomputation with the first computation, and keep everything.
    """
    if self.remat == 'none':
      return function
    return jax.checkpoint(function, policy=REMAT[self.remat], prevent_cse=not scanned)
