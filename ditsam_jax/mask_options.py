"""Options of automatic mask generation, for the commands that offer it."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from ditsam_jax.inference.mask_settings import MaskSettings

_HELP = {
  'points_per_side': 'points along each side of the image',
  'points_per_batch': 'maximum number of points at once per device',
  'pred_iou_thresh': 'drop masks with a predicted IoU up to this; 0 keeps all',
  'stability_score_thresh': 'drop masks less stable than this; 0 keeps all',
  'stability_score_offset': 'stability is the IoU between the masks at the threshold plus and minus this, on logits',
  'box_nms_thresh': 'of masks whose boxes overlap by more than this IoU, keep the best',
  'crop_n_layers': 'number of additional layers of crops, with 4 crops in the first, 16 in the second',
  'crop_nms_thresh': 'the same between crops; the smaller crop wins',
  'crop_overlap_ratio': "overlap of the first layer's crops, as a share of the image's short side",
  'crop_n_points_downscale_factor': 'factor by which each layer has fewer points per side',
  'min_mask_region_area': 'remove holes and islands of fewer pixels; 0 keeps them',
}
ALL = tuple(_HELP)


def add_flags(parser: argparse.ArgumentParser, names: Sequence[str] = ALL) -> None:
  """Adds a group of options for these fields of MaskSettings."""
  group = parser.add_argument_group("mask generation, as in Meta's amg.py")
  for field in dataclasses.fields(MaskSettings):
    if field.name in names:
      kind = type(field.default)
      group.add_argument(
        f'--{field.name.replace("_", "-")}',
        type=kind,
        default=field.default,
        metavar='N' if kind is int else 'X',
        help=f'{_HELP[field.name]} (default: {field.default:.3g})',
      )


def settings(options: argparse.Namespace, names: Sequence[str] = ALL) -> dict[str, Any]:
  """Returns the values of these options. Raises UserError if one is invalid."""
  found = {name: getattr(options, name) for name in names}
  MaskSettings(**found)
  return found
