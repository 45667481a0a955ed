"""A plain SAM in ONNX is what Meta's own export of it would be."""

import json

import cv2
import numpy as np
import pytest

from ditsam_jax.exporting.reference import Case, Stages
from ditsam_jax.inference.framing import frame
from tests.exporting.conftest import SAM, Exported
from tests.meta_sam import meta_package, meta_sam

pytestmark = pytest.mark.slow
INPUTS = ['image_embeddings', 'point_coords', 'point_labels', 'mask_input', 'has_mask_input', 'orig_im_size']
OUTPUTS = ['masks', 'iou_predictions', 'low_res_masks']
SIDE = SAM.image_size
PROMPTS = {  # points in pixels of the square, labels, whether there is a mask prompt
  'a point': ([[30, 20], [0, 0]], [1, -1], 0),
  'a box': ([[10, 12], [60, 50]], [2, 3], 0),
  'points and a mask': ([[30, 20], [50, 60], [0, 0]], [1, 0, -1], 1),
  'an unknown label': ([[30, 20], [5, 5], [9, 70]], [1, 7, 0], 0),
}


def session(export: Exported, name: str):
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = 1
  return onnxruntime.InferenceSession(export.folder / f'{name}.onnx', options, providers=['CPUExecutionProvider'])


def inputs_of(prompt: str, size: tuple[int, int]) -> dict[str, np.ndarray]:
  points, labels, has_mask = PROMPTS[prompt]
  rng = np.random.default_rng(1)
  grid, width = SAM.grid, SAM.mask_decoder.width
  return {
    'image_embeddings': rng.normal(size=(1, width, grid, grid)).astype(np.float32),
    'point_coords': np.array([points], np.float32),
    'point_labels': np.array([labels], np.float32),
    'mask_input': rng.normal(size=(1, 1, 4 * grid, 4 * grid)).astype(np.float32),
    'has_mask_input': np.array([has_mask], np.float32),
    'orig_im_size': np.array(size, np.float32),
  }


def metas(package, weights, inputs: dict[str, np.ndarray], single: bool) -> list[np.ndarray]:
  """What Meta's ONNX model computes, run in PyTorch."""
  import importlib

  import torch

  onnx = importlib.import_module(f'{package.__name__}.utils.onnx')
  model = onnx.SamOnnxModel(meta_sam(package, SAM, weights), return_single_mask=single)
  return [array.numpy() for array in model(*(torch.from_numpy(inputs[name]) for name in INPUTS))]


def test_the_decoder_has_metas_names(sam_onnx):
  decoder = session(sam_onnx, 'decoder')
  assert [given.name for given in decoder.get_inputs()] == INPUTS
  assert [given.name for given in decoder.get_outputs()] == OUTPUTS


@pytest.mark.verifies(
  'ONNX export of plain SAM: decoder', against="Meta's SamOnnxModel in PyTorch", within='1e-5 relative'
)
@pytest.mark.parametrize('prompt', PROMPTS)
def test_the_decoder_computes_metas_numbers(sam_onnx, prompt):
  decoder = session(sam_onnx, 'decoder')
  with meta_package() as package:
    for size in ((48, 80), (301, 200), (64, 64), (33, 1), (80, 57)):
      inputs = inputs_of(prompt, size)
      expected = metas(package, sam_onnx.source.weights, inputs, single=True)
      for name, ours, theirs in zip(OUTPUTS, decoder.run(None, inputs), expected):
        assert ours.shape == theirs.shape, name
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0, err_msg=f'{name} {size}')


def test_all_masks_are_metas_too(sam_onnx):
  import torch

  from ditsam_jax.exporting.onnx_modules import Decoder
  from ditsam_jax.exporting.onnx_programs import peer_of

  inputs = inputs_of('a box', (301, 200))
  decoder = Decoder(peer_of(sam_onnx.source), all_masks=True)
  with meta_package() as package, torch.no_grad():
    ours = decoder(*(torch.from_numpy(inputs[name]) for name in INPUTS))
    for mine, theirs in zip(ours, metas(package, sam_onnx.source.weights, inputs, single=False)):
      np.testing.assert_allclose(mine.numpy(), theirs, atol=1e-5 * np.abs(theirs).max(), rtol=0)


def test_the_steps_of_metas_notebook_give_metas_masks(sam_onnx):
  """Image, embedding, points of a click and a box with `apply_coords`, decoder: as its ONNX notebook does it."""
  described = json.loads((sam_onnx.folder / 'interface.json').read_text())
  image = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
  image = cv2.GaussianBlur(image, (9, 9), 0)
  with meta_package() as package:
    sam = meta_sam(package, SAM, sam_onnx.source.weights)
    predictor = package.SamPredictor(sam)
    predictor.set_image(image)
    embedding = predictor.get_image_embedding().cpu().numpy()
    pixels = sam.preprocess(
      __import__('torch').as_tensor(predictor.transform.apply_image(image)).permute(2, 0, 1)[None]
    ).numpy()
    ours = session(sam_onnx, 'image_encoder').run(None, {'images': pixels})[0]
    np.testing.assert_allclose(ours, embedding, atol=1e-5 * np.abs(embedding).max(), rtol=0)

    click, box = np.array([[40, 30]]), np.array([10, 5, 70, 50])
    onnx_coord = np.concatenate([click, box.reshape(2, 2)], axis=0)[None, :, :]
    onnx_label = np.concatenate([np.array([0]), np.array([2, 3])], axis=0)[None, :].astype(np.float32)
    onnx_coord = predictor.transform.apply_coords(onnx_coord, image.shape[:2]).astype(np.float32)
    ort_inputs = {
      'image_embeddings': ours,
      'point_coords': onnx_coord,
      'point_labels': onnx_label,
      'mask_input': np.zeros((1, 1, 4 * SAM.grid, 4 * SAM.grid), dtype=np.float32),
      'has_mask_input': np.zeros(1, dtype=np.float32),
      'orig_im_size': np.array(image.shape[:2], dtype=np.float32),
    }
    masks, _, _ = session(sam_onnx, 'decoder').run(None, ort_inputs)
    expected, _, _ = predictor.predict(click, np.array([0]), box=box, multimask_output=False, return_logits=True)
  assert described['mask_logit'] == sam.mask_threshold == 0.0
  assert masks.shape == (1, 1, *image.shape[:2])
  np.testing.assert_allclose(masks[0], expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


def test_many_prompts_share_an_image(sam_onnx):
  decoder = session(sam_onnx, 'decoder')
  one, two = inputs_of('a box', (50, 70)), inputs_of('a point', (50, 70))
  both = one | {name: np.concatenate([one[name], two[name]]) for name in ('point_coords', 'point_labels')}
  for alone, found in zip(zip(decoder.run(None, one), decoder.run(None, two)), decoder.run(None, both)):
    np.testing.assert_allclose(found, np.concatenate(alone), atol=1e-5)


def test_a_model_that_computes_nan_differs():
  differences = pytest.importorskip('ditsam_jax.exporting.onnx_runtime').differences
  framed = frame(np.zeros((8, 9, 3), np.uint8), SAM)
  case = Case('a point', framed, None, np.zeros((2, 2), np.float32), np.zeros(2, np.int32), None)
  embedding, masks, iou = np.ones((2, 2, 3)), np.full((4, 8, 8), np.nan), np.full(4, np.nan)
  found = {'low_res_masks': masks[:1], 'iou_predictions': iou[:1], 'masks': masks[:1]}
  found['image_embeddings'] = embedding.transpose(2, 0, 1)
  assert np.isnan(differences(found, Stages(None, embedding, masks, iou, masks), case)['masks'])
