"""Derived from the fusion classes: tensor names, detection of a checkpoint's fusion, the table in docs/fusions.md."""

import collections
import json
from pathlib import Path

import pytest

from ditsam_jax.convert import names
from ditsam_jax.convert.architecture import possible_fusions
from ditsam_jax.models.instruction import FUSIONS
from tests.small_models import GOLDEN

DOCS = Path(__file__).parents[2] / 'docs' / 'fusions.md'
DEPTH = 3


def release_names(fusion: str) -> dict[str, tuple[int, ...]]:
  """Names of a fusion's tensors in a release checkpoint, with empty shapes."""
  sources = [tensor.source for tensor in FUSIONS[fusion].tensors]
  return {'visual_encoder.' + source.replace('#', str(i)): () for source in sources for i in range(DEPTH)}


def table_row(name: str) -> str:
  fusion = FUSIONS[name]
  golden = {json.loads(file.read_text())['variant'].replace('default_sam', 'none') for file in GOLDEN.glob('*.json')}
  width = 'any' if fusion.any_text_width else "the image's"
  verified = "the release's numbers" if name in golden else 'its formula in NumPy and PyTorch'
  return f'| `{name}` | {fusion.title} | {" | ".join(fusion.formula)} | {width} | {verified} |'


def test_the_documented_table_matches_the_classes():
  documented = [line for line in DOCS.read_text().splitlines() if line.startswith('| `') and '`NAME`' not in line]
  assert documented == [table_row(name) for name in FUSIONS]


def test_the_documented_fusions_for_scan_match_the_classes():
  text = ' '.join(DOCS.read_text().split())
  looped = ', '.join(f'`{name}`' for name, fusion in FUSIONS.items() if not fusion.travels)
  assert f'if the slots depend on the text alone: {looped}.' in text


def test_no_parameter_has_two_sources():
  """The table of names is shared by all fusions."""
  sources = collections.defaultdict(set)
  for fusion in FUSIONS.values():
    for tensor in fusion.tensors:
      sources[tensor.path].add((tensor.source, tensor.layout))
  assert all(len(found) == 1 for found in sources.values()), sources


@pytest.mark.parametrize('fusion', FUSIONS)
def test_fusions_are_detected_by_their_tensors_even_if_one_is_missing(fusion):
  whole = release_names(fusion)
  same = tuple(name for name in FUSIONS if release_names(name) == whole)
  assert possible_fusions(whole | {'visual_encoder.blocks.0.mlp.lin1.weight': ()}) == same
  for lost in whole if len(FUSIONS[fusion].tensors) > 1 else ():
    assert set(same) <= set(possible_fusions({name: () for name in whole if name != lost}))


def test_names_and_layouts_of_a_fusions_tensors():
  linear, bias = names.release_name('image_encoder.instruction.cross.11.out_proj.kernel'), 'cross.11.linear_merge'
  assert linear == (f'visual_encoder.{bias}.weight', names.LINEAR)
  assert names.release_name('image_encoder.instruction.tokens') == ('visual_encoder.tokens', names.SAME)
