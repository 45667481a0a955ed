"""SamPredictor gives the same masks, scores and logits as Meta's, on the same random weights."""

import importlib.util

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import SamPredictor
from tests.inference.predictor_cases import PROMPTS, ask, in_pixels, picture, relative_error
from tests.small_models import SAM, load_release, random_model

pytestmark = pytest.mark.usefixtures('quick_compilation')

SIZES = [(80, 80), (60, 100), (100, 60), (31, 47), (47, 30), (53, 200), (411, 230)]


class MetaPredictor:
  """segment_anything.SamPredictor step by step, with Pillow in place of torchvision's resize."""

  def __init__(self, sam):
    self.sam = sam

  def set_image(self, image):
    import torch

    scale = SAM.image_size / max(image.shape[:2])
    self.size, self.input_size = image.shape[:2], tuple(int(length * scale + 0.5) for length in image.shape[:2])
    resized = np.array(Image.fromarray(image).resize(self.input_size[::-1], Image.Resampling.BILINEAR))
    with torch.no_grad():
      pixels = torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None]
      self.features = self.sam.image_encoder(self.sam.preprocess(pixels))

  def predict(self, points=None, labels=None, box=None, mask=None, multimask=False):
    """Returns logits [M, h, w], IoU [M], and low-resolution logits [M, S/4, S/4]."""
    import torch

    with torch.no_grad():
      if points is not None:
        points = self._coordinates(points), torch.as_tensor(labels, dtype=torch.int)[None]
      if box is not None:
        box = self._coordinates(box.reshape(2, 2)).reshape(1, 4)
      if mask is not None:
        mask = torch.as_tensor(mask, dtype=torch.float)[None, None]
      sparse, dense = self.sam.prompt_encoder(points=points, boxes=box, masks=mask)
      positions = self.sam.prompt_encoder.get_dense_pe()
      low_res, iou = self.sam.mask_decoder(self.features, positions, sparse, dense, multimask)
      logits = self.sam.postprocess_masks(low_res, self.input_size, self.size)
    return tuple(array[0].numpy() for array in (logits, iou, low_res))

  def _coordinates(self, points):
    import torch

    (new_h, new_w), (old_h, old_w) = self.input_size, self.size
    return torch.as_tensor(points.astype(float) * (new_w / old_w, new_h / old_h), dtype=torch.float)[None]


@pytest.fixture(scope='module')
def peers():
  """Our predictor and Meta's on the same random weights."""
  torch = pytest.importorskip('torch')
  if importlib.util.find_spec('segment_anything') is None:
    pytest.skip('segment_anything is not installed')
  from ditsam_jax.convert.torch_peer import segment_anything_modeling
  from tests.convert.torch_models import meta_sam, randomise

  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # more threads are slower at this size
  sam = randomise(meta_sam(SAM, segment_anything_modeling()))
  model = random_model(SAM)
  assert not load_release(
    model,
    {name.replace('image_encoder.', 'visual_encoder.'): tensor.numpy() for name, tensor in sam.state_dict().items()},
  )
  model.eval()
  yield SamPredictor.from_model(model), MetaPredictor(sam)
  torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.verifies(
  'SamPredictor: masks, scores and low-resolution logits of clicks, boxes and masks',
  against="Meta's SamPredictor",
  within='1e-4 relative',
)
@pytest.mark.parametrize('size', SIZES)
def test_predictions_equal_metas(peers, size):
  ours, meta = peers
  for predictor in peers:
    predictor.set_image(picture(size))
  for case, prompt in PROMPTS.items():
    for multimask in (False, True):
      prompt_here = in_pixels(prompt, size)
      result = ask(ours, **prompt_here, multimask=multimask)
      logits, iou, low_res_logits = meta.predict(**prompt_here, multimask=multimask)
      assert len(result.masks) == (3 if multimask else 1)
      for mine, expected in ((result.logits, logits), (result.iou, iou), (result.low_res_logits, low_res_logits)):
        assert mine.dtype == np.float32
        assert relative_error(mine, expected) <= 1e-4, f'{case}, multimask {multimask}'
      assert result.masks.dtype == bool and (result.masks == (result.logits > 0)).all()
      sure = np.abs(logits) > 1e-3 * np.abs(logits).max()
      assert (result.masks == (logits > 0))[sure].all()


@pytest.mark.verifies(
  'SamPredictor: masks, scores and low-resolution logits of clicks, boxes and masks',
  against="Meta's SamPredictor",
  within='1e-4 relative',
)
def test_refining_an_earlier_mask_equals_metas(peers):
  click, clicks = (in_pixels(PROMPTS[name], (60, 100)) for name in ('a positive point', 'mixed points'))
  ours, meta = peers
  for predictor in peers:
    predictor.set_image(picture((60, 100)))
  first, meta_first = ask(ours, **click, multimask=True), meta.predict(**click, multimask=True)
  best = int(first.iou.argmax())
  second = ask(ours, **clicks, mask=first.low_res_logits[best])
  expected = meta.predict(**clicks, mask=meta_first[2][best])
  assert relative_error(second.logits, expected[0]) <= 1e-4
  same = ask(ours, **clicks, mask=first.low_res_logits[best : best + 1])
  np.testing.assert_array_equal(same.logits, second.logits)
