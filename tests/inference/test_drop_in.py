"""Code written for segment_anything's SamPredictor gives the same results after changing the import."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import ditsam_jax
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.errors import UserError
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.building import build_model
from ditsam_jax.storage.description import read_config
from tests.meta_sam import meta_package, meta_sam

# Typical user code, after Meta's notebook. It gets `sam` and `image` (uint8, RGB, 150 x 100); `found` is compared.
SCRIPT = """
import numpy as np
from PACKAGE import SamPredictor

predictor = SamPredictor(sam)
try:
    predictor.predict(point_coords=np.array([[1, 2]]), point_labels=np.array([1]))
except RuntimeError as error:
    assert 'set_image' in str(error)

predictor.set_image(image)
assert predictor.is_image_set
found['sizes'] = np.array([*predictor.original_size, *predictor.input_size, predictor.model.image_encoder.img_size])
found['embedding'] = np.asarray(predictor.get_image_embedding())
found['threshold'] = np.array(predictor.model.mask_threshold)

input_point, input_label = np.array([[75, 50]]), np.array([1])
masks, scores, logits = predictor.predict(
    point_coords=input_point,
    point_labels=input_label,
    multimask_output=True,
)
found['click masks'], found['click scores'], found['click logits'] = masks, scores, logits

mask_input = logits[np.argmax(scores), :, :]
input_point, input_label = np.array([[75, 50], [20, 130]]), np.array([1, 0])
masks, scores, logits = predictor.predict(
    point_coords=input_point,
    point_labels=input_label,
    mask_input=mask_input[None, :, :],
    multimask_output=False,
)
found['refined masks'], found['refined scores'], found['refined logits'] = masks, scores, logits

input_box = np.array([30, 40, 90, 120])
masks, _, _ = predictor.predict(point_coords=None, point_labels=None, box=input_box[None, :], multimask_output=False)
found['box masks'] = masks
found['box and point'] = predictor.predict(input_point[:1], input_label[:1], input_box, None, False, True)[0]
found['all logits'] = predictor.predict(input_point, input_label, return_logits=True)[0]  # three masks by default
found['nothing'] = predictor.predict(return_logits=True)[0]

found['moved points'] = predictor.transform.apply_coords(input_point, image.shape[:2])
found['moved boxes'] = predictor.transform.apply_boxes(np.stack([input_box, input_box + 5]), image.shape[:2])
found['resized'] = predictor.transform.apply_image(image)
found['shape'] = np.array(predictor.transform.get_preprocess_shape(480, 641, predictor.transform.target_length))

predictor.set_image(np.ascontiguousarray(image[..., ::-1]), image_format='BGR')
found['bgr'] = predictor.predict(input_point, input_label, return_logits=True)[0]
predictor.reset_image()
assert not predictor.is_image_set and predictor.features is None
"""


@pytest.fixture(scope='module')
def meta():
  """segment_anything, and the shipped SAM as its model."""
  with meta_package() as package:
    yield package, meta_sam(package, read_config('sam_shapes'), saved_model.read_weights('sam_shapes'))


@pytest.fixture(scope='module')
def sam():
  # The model was trained with aligned corners, which Meta's code does not support.
  config = dataclasses.replace(read_config('sam_shapes'), align_corners=False)
  return build_model(config, saved_model.read_weights('sam_shapes'), 'sam_shapes')


@pytest.fixture(scope='module')
def image():
  scene, _ = described_scene(scenes_config({}), 'test', 0)
  return np.asarray(Image.fromarray(scene.image).resize((100, 150)))


def close(ours, theirs):
  """Asserts that arrays are equal up to 1e-4 of the largest value, and masks in all but 1e-4 of the pixels."""
  assert ours.shape == theirs.shape and (ours.dtype == bool) == (theirs.dtype == bool)
  if ours.dtype == bool:
    assert (ours != theirs).mean() < 1e-4
  else:
    assert np.abs(ours.astype(float) - theirs).max() <= 1e-4 * max(np.abs(theirs).max(), 1e-9)


@pytest.mark.slow
@pytest.mark.verifies(
  'A script written for segment_anything, on the shipped SAM', against="Meta's segment_anything", within='1e-4 relative'
)
def test_one_script_gives_the_same_with_both_packages(meta, sam, image):
  ours, theirs = {}, {}
  exec(SCRIPT.replace('PACKAGE', 'segment_anything'), {'sam': meta[1], 'image': image, 'found': theirs})
  exec(SCRIPT.replace('PACKAGE', 'ditsam_jax'), {'sam': sam, 'image': image, 'found': ours})
  assert list(ours) == list(theirs) and len(ours) > 15
  for name, expected in theirs.items():
    close(np.asarray(ours[name]), np.asarray(expected))
  assert ours['all logits'].shape == (3, 150, 100) and ours['box masks'].shape == (1, 150, 100)
  assert ours['click masks'].any() and ours['box masks'].any()


def test_arguments_have_the_same_names_and_order(meta):
  import inspect

  for method in ('set_image', 'predict'):
    theirs = list(inspect.signature(getattr(meta[0].SamPredictor, method)).parameters)
    mine = inspect.signature(getattr(ditsam_jax.SamPredictor, method)).parameters
    assert list(mine)[: len(theirs)] == theirs
  theirs = list(inspect.signature(meta[0].SamPredictor.predict_torch).parameters)
  assert list(inspect.signature(ditsam_jax.SamPredictor.predict_batch).parameters)[: len(theirs)] == theirs


@pytest.mark.slow
@pytest.mark.verifies('SamPredictor: batches of prompts', against="Meta's predict_torch", within='1e-4 relative')
@pytest.mark.parametrize('count', [1, 3, 11])
def test_predict_batch_equals_predict_torch(meta, sam, image, count):
  import torch

  rng = np.random.default_rng(count)
  corners = np.sort(rng.uniform(0, 100, (count, 2, 2)), axis=1).reshape(count, 4)
  points, labels = rng.uniform(0, 100, (count, 2, 2)), rng.integers(0, 2, (count, 2))
  mine, theirs = ditsam_jax.SamPredictor(sam), meta[0].SamPredictor(meta[1])
  for predictor in (mine, theirs):
    predictor.set_image(image)
  transform, size = theirs.transform, image.shape[:2]
  moved = transform.apply_coords_torch(torch.as_tensor(points), size)
  boxes = transform.apply_boxes_torch(torch.as_tensor(corners), size)
  for prompt, expected in (
    (dict(boxes=corners, multimask_output=False), dict(point_coords=None, point_labels=None, boxes=boxes)),
    (
      dict(point_coords=points, point_labels=labels),
      dict(point_coords=moved, point_labels=torch.as_tensor(labels), multimask_output=True),
    ),
  ):
    found = mine.predict_batch(**prompt, return_logits=True)
    expected = theirs.predict_torch(**({'multimask_output': False} | expected), return_logits=True)
    for ours, other in zip(found, expected):
      close(ours, other.numpy())
  again = mine.predict_batch(mask_input=found[2][:, :1], boxes=corners, multimask_output=False)
  expected = theirs.predict_torch(None, None, boxes, torch.as_tensor(found[2][:, :1]), False)
  for ours, other in zip(again, expected):
    close(ours, other.numpy())


def test_a_batch_equals_single_prompts(sam, image):
  predictor = ditsam_jax.SamPredictor(sam)
  predictor.set_image(image)
  points = np.random.default_rng(0).uniform(0, 100, (9, 1, 2))
  together = predictor.predict_batch(points, np.ones((9, 1)), return_logits=True)
  for i in range(9):
    for batch, one in zip(together, predictor.predict(points[i], np.ones(1), return_logits=True)):
      close(batch[i], one)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      dict(boxes=np.ones((2, 4)), mask_input=np.zeros((3, 1, 32, 32))),
      '2 boxes, 3 mask_input: expected the same number',
    ),
    ({}, 'no prompts: expected'),
    (dict(boxes=np.zeros((0, 4))), 'expected'),
    (dict(boxes=5), 'boxes of type int'),
    (dict(boxes=[[1, 2, 3, 4], [3, 2, 1, 4]]), 'x0 <= x1'),
    (dict(point_coords=np.ones((2, 1, 2))), 'points without labels'),
    (dict(text=['the red circle']), 'no text encoder'),
    (dict(text='circle'), 'text of type str: expected an array of B prompts'),
  ],
)
def test_invalid_batches(sam, image, arguments, message):
  predictor = ditsam_jax.SamPredictor(sam)
  predictor.set_image(image)
  with pytest.raises(UserError, match=message):
    predictor.predict_batch(**arguments)


def test_the_channel_order_is_never_guessed(sam, image, tmp_path):
  predictor = ditsam_jax.SamPredictor(sam)
  with pytest.raises(UserError, match="'GBR': expected one of RGB, BGR"):
    predictor.set_image(image, 'GBR')
  Image.fromarray(image).save(tmp_path / 'image.png')
  for file in (tmp_path / 'image.png', Image.open(tmp_path / 'image.png')):
    with pytest.raises(UserError, match="'BGR' with an image of type"):
      predictor.set_image(file, 'BGR')
  with pytest.raises(UserError, match=r"'BGR' with an array of shape \(150, 100\)"):
    predictor.set_image(image[..., 0], 'BGR')
  assert not predictor.is_image_set
