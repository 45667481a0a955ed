"""Instances that fit a phrase: average precision, counts, and their unions as gRefCOCO scores them."""

import contextlib
import dataclasses
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ditsam_jax.evaluation.metrics import generalised_rates
from ditsam_jax.geometry.masks import decode_rle


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
  """The objects that a phrase names, and those found; masks as COCO's run lengths, of one size.

  Attributes:
    targets: masks of the objects that the phrase names; may be none.
    found: masks.
    scores: of each found mask.
  """

  targets: Sequence[dict[str, Any]]
  found: Sequence[dict[str, Any]]
  scores: Sequence[float]


def instance_rates(answers: Sequence[Answer]) -> dict[str, float]:
  """Scores in percent.

  AP, AP50 and AP75 are COCO's mask AP, with each phrase as an image of its own; masks found for phrases that name
  nothing are false positives. `count` is the share of phrases for which as many masks are found as there are targets,
  `count_N` of those with N targets. gIoU, cIoU, N-acc, T-acc and Pr@X are gRefCOCO's, of the union of the masks.
  """
  right = np.array([len(answer.targets) == len(answer.found) for answer in answers])
  targets = np.array([len(answer.targets) for answer in answers])
  rates = _average_precision(answers) if targets.any() else {}
  rates['count'] = 100 * float(right.mean())
  for number in np.unique(targets).tolist():
    rates[f'count_{number}'] = 100 * float(right[targets == number].mean())
  unions = [(union_of(answer.targets, size), union_of(answer.found, size)) for answer, size in _sized(answers)]
  intersection, union, target = (
    np.array([np.count_nonzero(counted(truth, found)) for truth, found in unions])
    for counted in (np.logical_and, np.logical_or, lambda truth, found: truth)
  )
  return rates | generalised_rates(intersection, union, target)


def union_of(masks: Sequence[dict[str, Any]], size: tuple[int, int]) -> np.ndarray:
  """Returns the union of masks, bool [h, w]."""
  union = np.zeros(size, bool)
  for mask in masks:
    union |= decode_rle(mask)
  return union


def _sized(answers: Sequence[Answer]):
  for answer in answers:
    known = [*answer.targets, *answer.found]
    yield answer, tuple(known[0]['size']) if known else (1, 1)


def _average_precision(answers: Sequence[Answer]) -> dict[str, float]:
  sizes = [size for _, size in _sized(answers)]
  masks = [(number, mask) for number, answer in enumerate(answers) for mask in answer.targets]
  truth: Any = COCO()
  truth.dataset = {
    'info': {},
    'images': [{'id': number, 'height': height, 'width': width} for number, (height, width) in enumerate(sizes)],
    'categories': [{'id': 1}],
    'annotations': [  # numbered from 1: pycocotools reads 0 as unmatched
      {'id': i, 'image_id': number, 'category_id': 1, 'iscrowd': 0, 'segmentation': mask, 'area': _area(mask)}
      for i, (number, mask) in enumerate(masks, 1)
    ],
  }
  results = [
    {'image_id': number, 'category_id': 1, 'segmentation': mask, 'score': float(score)}
    for number, answer in enumerate(answers)
    for mask, score in zip(answer.found, answer.scores)
  ]
  if not results:
    return {'AP': 0.0, 'AP50': 0.0, 'AP75': 0.0}
  with contextlib.redirect_stdout(io.StringIO()):
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(results), 'segm')
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
  return {name: 100 * max(0.0, float(value)) for name, value in zip(('AP', 'AP50', 'AP75'), evaluation.stats)}


def _area(mask: dict[str, Any]) -> int:
  return int(np.count_nonzero(decode_rle(mask)))
