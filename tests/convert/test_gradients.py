"""The gradients of all parameters equal torch autograd's."""

import jax
import numpy as np
import optax
import pytest
from flax import nnx

torch = pytest.importorskip('torch')

from ditsam_jax.convert import names
from ditsam_jax.convert.torch_peer import Peer
from ditsam_jax.models.weights import dotted
from tests.small_models import GOLDEN, golden_arrays, golden_config, golden_model

TOLERANCE = 1e-3  # relative to a tensor's norm


def torch_gradients(name: str, batch: dict) -> dict[str, np.ndarray]:
  """Gradients by the release's names; zeros for parameters that the loss does not depend on."""
  peer = Peer(golden_config(name, 64)).eval()
  state = torch.load(GOLDEN / f'{name}.pth', weights_only=True)['state_dict']
  state = {key.removeprefix('module.'): tensor for key, tensor in state.items()}
  peer.load_state_dict({key: state[key] for key in peer.state_dict()})
  out = peer(
    torch.from_numpy(batch['image']), torch.from_numpy(batch['token_ids']), torch.from_numpy(batch['token_mask'])
  )
  torch.nn.functional.binary_cross_entropy_with_logits(
    out['logits'], torch.from_numpy(batch['mask'][:, 0]).float()
  ).backward()
  return {
    key: (parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)).numpy()
    for key, parameter in peer.named_parameters()
  }


def our_gradients(name: str, batch: dict) -> dict[str, np.ndarray]:
  """Gradients by the release's names and in its layout."""
  graph, params, rest = nnx.split(golden_model(name, 64), nnx.Param, ...)

  @jax.jit
  @jax.grad
  def gradient(params):
    model = nnx.merge(graph, params, rest)
    out = model(np.moveaxis(batch['image'], 1, -1), batch['token_ids'], batch['token_mask'])
    return optax.sigmoid_binary_cross_entropy(out.logits, batch['mask'][:, 0].astype(np.float32)).mean()

  gradients = {}
  for path, variable in nnx.to_flat_state(gradient(params)):
    entry = names.entry(dotted(path))
    gradients |= dict(zip(entry.names, entry.save(np.asarray(variable[...]))))
  return gradients


@pytest.mark.slow
@pytest.mark.verifies(
  'The gradient of every parameter, L-DIT and E-DIT',
  against="PyTorch autograd of the same model, of Meta's modules",
  within="1e-3 of each gradient's norm",
)
@pytest.mark.parametrize('name', ['ldit', 'edit'])
def test_gradients_of_all_parameters(name):
  batch = {key: golden_arrays(name)[f'train/{key}'][0] for key in ('image', 'token_ids', 'token_mask', 'mask')}
  theirs, ours = torch_gradients(name, batch), our_gradients(name, batch)
  assert theirs.keys() == ours.keys()
  largest = max(np.linalg.norm(gradient) for gradient in theirs.values())
  moved = 0
  for key, expected in theirs.items():
    norm, error = np.linalg.norm(expected), np.linalg.norm(ours[key] - expected)
    if norm <= 1e-6 * largest:  # only rounding, as for the bias of keys, to which softmax is invariant
      assert error <= 1e-6 * largest, key
      continue
    moved += 1
    assert error <= TOLERANCE * norm, f'{key}: {error / norm}'
  assert moved > 0.8 * len(theirs)
