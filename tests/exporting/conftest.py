"""Small models as saved folders, and one export of each kind for all tests."""

import dataclasses
import fcntl
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from ditsam_jax.exporting.formats import export
from ditsam_jax.exporting.request import Request
from ditsam_jax.exporting.source import Source, read
from ditsam_jax.models import config as models
from ditsam_jax.storage import saved_model
from tests.extras import run_alone
from tests.small_models import SAM as LARGER_SAM
from tests.small_models import random_model, small_config

WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', 'the', 'red', 'circle', 'large', 'left', 'of', 'small', 'blue', 'star']
DIT = small_config(
  mask_decoder=models.MaskDecoderConfig(width=16, depth=1, heads=2, mlp_width=16, iou_hidden=16), mask_threshold=0.35
)

# One block with windows and one without: tracing takes seconds per block.
SAM = dataclasses.replace(
  LARGER_SAM,
  image_encoder=dataclasses.replace(LARGER_SAM.image_encoder, depth=2),
  mask_decoder=dataclasses.replace(LARGER_SAM.mask_decoder, depth=1),
)


class Exported(NamedTuple):
  """A saved model and its export."""

  model: Path
  folder: Path
  report: str
  source: Source


def saved(folder: Path, config: models.DitSamConfig, seed: int = 0) -> Path:
  """A model with random weights, each exactly representable in f16."""
  model = random_model(config, seed)
  vocabulary = None
  if config.text_encoder is not None:
    vocabulary = folder.with_suffix('.txt')
    vocabulary.write_text('\n'.join(WORDS) + '\n')
  return saved_model.save(folder, model, vocabulary=vocabulary, dtype=np.float16)


def exported(root: Path, config: models.DitSamConfig, kind: str, alone: bool = False) -> Exported:
  """Saves a model and exports it; `alone` with the packages of the extra alone, in another process."""
  model, folder, report = root / 'model', root / kind, root / 'report.txt'
  if not report.exists():  # otherwise another test process has made it
    saved(model, config)
    if alone:
      said = run_alone(kind, 'export', f'--checkpoint={model}', f'--format={kind}', f'--output={folder}')
    else:
      said = export(kind, Request(str(model), str(folder)))
    report.write_text(said)
  return Exported(model, folder, report.read_text(), read(Request(str(model), '')))


def exported_once(factory: pytest.TempPathFactory, name: str, config: models.DitSamConfig, alone: bool) -> Exported:
  """An export to ONNX, which takes half a minute, by the first test process that needs it."""
  pytest.importorskip('onnxscript')
  own = factory.getbasetemp()
  root = (own.parent if 'PYTEST_XDIST_WORKER' in os.environ else own) / name
  root.mkdir(exist_ok=True)
  with open(root / 'lock', 'w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    return exported(root, config, 'onnx', alone)


@pytest.fixture(scope='session')
def dit_onnx(tmp_path_factory) -> Exported:
  """A small L-DIT in ONNX."""
  return exported_once(tmp_path_factory, 'dit', DIT, alone=False)


@pytest.fixture(scope='session')
def sam_onnx(tmp_path_factory) -> Exported:
  """A small plain SAM in ONNX."""
  return exported_once(tmp_path_factory, 'sam', SAM, alone=True)
