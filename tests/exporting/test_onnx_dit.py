"""An L-DIT in ONNX computes what JAX computes, in every combination of prompts."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.exporting.onnx_runtime import Session
from ditsam_jax.inference.segmenter import Segmenter
from tests.exporting.conftest import DIT
from tests.small_models import call

pytestmark = pytest.mark.slow
SIDE = DIT.image_size
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def session(dit_onnx) -> Session:
  return Session(dit_onnx.folder, DIT)


def run(session: Session, images, text, points, labels, size=(SIDE, SIDE)) -> list[np.ndarray]:
  """The image encoder and the decoder on NHWC images."""
  count, side = len(images), 4 * DIT.grid
  (embeddings,) = session.run('image_encoder', images=images.transpose(0, 3, 1, 2), text_features=text)
  return session.run(
    'decoder',
    image_embeddings=embeddings,
    point_coords=points.astype(np.float32),
    point_labels=labels.astype(np.float32),
    mask_input=np.zeros((count, 1, side, side), np.float32),
    has_mask_input=np.zeros(1, np.float32),
    orig_im_size=np.array(size, np.float32),
    text_features=text,
  )


def no_points(count: int) -> tuple[np.ndarray, np.ndarray]:
  return np.zeros((count, 0, 2)), np.zeros((count, 0))


def close(found, expected) -> None:
  np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.verifies('ONNX export of DIT models', against='the model in JAX', within='1e-4 relative')
def test_a_batch_of_sentences(dit_onnx, session):
  rng = np.random.default_rng(0)
  images = rng.normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
  ids, mask = rng.integers(4, 13, (3, 6)), np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 3 + [0] * 3])
  (text,) = session.run('text_encoder', token_ids=ids * mask, token_mask=mask)
  masks, iou, low_res = run(session, images, text, *no_points(3))
  expected = call(dit_onnx.source.model(), images, ids * mask, mask)
  close(masks[:, 0], expected.logits)
  close(iou[:, 0], expected.iou)
  close(low_res[:, 0], expected.low_res_logits)


def test_points_without_a_sentence(dit_onnx, session):
  rng = np.random.default_rng(1)
  images = rng.normal(size=(2, SIDE, SIDE, 3)).astype(np.float32)
  text = np.zeros((2, 0, 24), np.float32)
  points, labels = rng.uniform(0, SIDE, (2, 3, 2)), np.tile([1, 0, -1], (2, 1))
  points[:, 2] = 0
  masks, _, _ = run(session, images, text, points, labels)
  expected = call(dit_onnx.source.model(), images, points=points[:, :2], point_labels=labels[:, :2])
  close(masks[:, 0], expected.logits)


def test_a_photo_of_any_shape_gives_the_segmenters_mask(dit_onnx, session):
  image = np.random.default_rng(2).integers(0, 255, (45, 101, 3)).astype(np.uint8)
  segmenter = Segmenter(dit_onnx.model, dtype='float32')
  expected = segmenter(image, 'the red circle', points=[[50, 20]])
  row = segmenter.row(segmenter.look(image).framed, segmenter.prompt('the red circle'))
  text = session.read((row.sentence.token_ids, row.sentence.token_mask))
  box = segmenter.look(image).framed
  point = np.array([[50, 20]]) * box.scale + box.offset
  points, labels = np.stack([point[0], [0, 0]])[None], np.array([[1, -1]])
  masks, _, _ = run(session, row.square.pixels[None], text, points, labels, size=image.shape[:2])
  close(masks[0], expected.logits)
  described = json.loads((dit_onnx.folder / 'interface.json').read_text())
  np.testing.assert_array_equal(masks[0, 0] > described['mask_logit'], expected.mask)


@pytest.mark.optimised
def test_the_lines_in_the_docs_give_the_segmenters_mask(tmp_path, monkeypatch):
  """With the live page's export of the shipped model, at float16, for which their sizes are written."""
  (tmp_path / 'onnx').mkdir()
  (tmp_path / 'onnx/shapes').symlink_to(ROOT / 'docs/live/models/shapes')
  monkeypatch.chdir(tmp_path)
  segmenter = Segmenter('shapes')
  image = described_scene(scenes_config({}), 'test', 0)[0].image
  row = segmenter.row(segmenter.look(image).framed, segmenter.prompt('the largest shape'))
  ids, mask = (np.asarray(each, np.int64)[None] for each in (row.sentence.token_ids, row.sentence.token_mask))
  known = dict(ids=ids, token_mask=mask, pixels=row.square.pixels.transpose(2, 0, 1)[None], height=128, width=128)
  lines = re.findall(r'<!-- run by a test -->\n```python\n(.*?)```', (ROOT / 'docs/export.md').read_text(), re.DOTALL)
  exec(next(each for each in lines if 'onnxruntime' in each), known)
  expected = segmenter(image, 'the largest shape').mask
  assert expected.sum() > 100 and np.mean((known['masks'][0, 0] > 0) != expected) < 1e-3
