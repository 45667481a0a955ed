"""Meta's segment_anything, and models of ours as its models."""

import contextlib
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ditsam_jax.models.config import DitSamConfig


@contextlib.contextmanager
def meta_package() -> Iterator[Any]:
  """segment_anything, imported as a whole; skips the test if it or PyTorch is not installed."""
  pytest.importorskip('torch')
  if importlib.util.find_spec('segment_anything') is None:
    pytest.skip('segment_anything is not installed')
  with pytest.MonkeyPatch.context() as patch:
    if importlib.util.find_spec('torchvision') is None:
      for name, module in _stand_ins().items():
        patch.setitem(sys.modules, name, module)
    yield importlib.import_module('segment_anything')
    for name in [name for name in sys.modules if name.split('.')[0] == 'segment_anything']:
      patch.delitem(sys.modules, name)


def stand_in_for_torchvision() -> None:
  """segment_anything can be imported in this process, with or without torchvision."""
  if importlib.util.find_spec('torchvision') is None:
    sys.modules.update(_stand_ins())


def meta_sam(package: Any, config: DitSamConfig, weights: dict[str, np.ndarray]) -> Any:
  """A plain SAM of ours as Meta's `Sam`, in evaluation mode."""
  from ditsam_jax.convert import names
  from ditsam_jax.convert.sources import release_tensors

  tensors = {names.meta_name(name): tensor.float() for name, tensor in release_tensors(weights).items()}
  return build_meta_sam(package, config, tensors)


def build_meta_sam(package: Any, config: DitSamConfig, tensors: dict[str, Any]) -> Any:
  """Meta's `Sam` of a config with PyTorch tensors by Meta's names."""
  from tests.convert import torch_models

  sam = torch_models.meta_sam(config, importlib.import_module(f'{package.__name__}.modeling'))
  sam.load_state_dict(tensors, strict=True)
  return sam


def _stand_ins() -> dict[str, types.ModuleType]:
  """What segment_anything wants of torchvision: resizing by Pillow, as torchvision resizes Pillow's images, and NMS."""
  folders = ('transforms', 'transforms.functional', 'ops', 'ops.boxes')
  modules: dict[str, Any] = {
    name: types.ModuleType(name) for name in ('torchvision', *(f'torchvision.{folder}' for folder in folders))
  }
  modules['torchvision.transforms.functional'].to_pil_image = Image.fromarray
  modules['torchvision.transforms.functional'].resize = lambda image, size: image.resize(
    size[::-1], Image.Resampling.BILINEAR
  )
  modules['torchvision.ops.boxes'].batched_nms = batched_nms
  modules['torchvision.ops.boxes'].box_area = _areas
  return modules


def _areas(boxes: Any) -> Any:
  return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def batched_nms(boxes: Any, scores: Any, categories: Any, iou_threshold: float) -> Any:
  """torchvision's, for a single category: indices of the kept boxes, highest scores first."""
  import torch

  assert not categories.any()
  areas, left = _areas(boxes), torch.sort(scores, descending=True, stable=True).indices
  kept = []
  while len(left):
    first, left = left[0], left[1:]
    kept.append(first)
    corner = torch.minimum(boxes[left, 2:], boxes[first, 2:]) - torch.maximum(boxes[left, :2], boxes[first, :2])
    overlap = corner.clamp(min=0).prod(1)
    left = left[~(overlap / (areas[left] + areas[first] - overlap) > iou_threshold)]
  return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)
