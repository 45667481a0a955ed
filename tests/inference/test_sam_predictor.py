"""Clicks, boxes and masks mean what they mean to Meta's SamPredictor; sentences what they mean to our Segmenter."""

import dataclasses
import importlib.util
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from ditsam_jax import SamPredictor
from ditsam_jax.data.datasets import scenes_config
from ditsam_jax.data.shapes.builder import described_scene
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import letterbox
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.config import IMAGENET_MEAN, IMAGENET_STD, DitSamConfig, ImageEncoderConfig, MaskDecoderConfig
from ditsam_jax.models.ditsam import DitSam
from ditsam_jax.models.image_encoder import ImageEncoder
from ditsam_jax.storage import saved_model
from ditsam_jax.tokenization import Tokenizer
from tests.small_models import load_release, random_model, small_config

SIDE, GRID, WIDTH = 80, 5, 32  # windows of 3 in a grid of 5 need padding
CONFIG = DitSamConfig(
  ImageEncoderConfig(
    width=24, depth=3, heads=2, global_blocks=(1,), pretrain_grid=GRID, pretrain_window=3, attention_scope='windowed'
  ),
  MaskDecoderConfig(width=WIDTH, heads=4, mlp_width=48, iou_hidden=40),
  None,
  fusion='none',
  image_size=SIDE,
  mask_threshold=0.5,
  align_corners=False,
)
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'the', 'red', 'blue', 'circle', 'square', 'large', 'small']

# Points and boxes as shares of the image's sides.
PROMPTS = {
  'nothing': {},
  'a positive point': dict(points=[[0.3, 0.6]], labels=[1]),
  'a negative point': dict(points=[[0.7, 0.2]], labels=[0]),
  'mixed points': dict(points=[[0.3, 0.6], [0.71, 0.23], [0.5, 0.5]], labels=[1, 0, 1]),
  'six points': dict(points=[[0.1 * i, 0.9 - 0.1 * i] for i in range(6)], labels=[1, 1, 0, 0, 1, 0]),
  'points outside': dict(points=[[-0.3, 0.5], [1.2, 1.4]], labels=[1, 0]),
  'a box': dict(box=[0.2, 0.1, 0.8, 0.65]),
  'points with a box': dict(points=[[0.4, 0.4], [0.9, 0.9]], labels=[1, 0], box=[0.2, 0.1, 0.8, 0.65]),
  'a mask': dict(mask=5),
  'a mask with points': dict(mask=6, points=[[0.5, 0.2]], labels=[0]),
  'everything': dict(mask=7, points=[[0.4, 0.4]], labels=[1], box=[0.1, 0.2, 0.7, 0.9]),
}
SIZES = [(80, 80), (60, 100), (100, 60), (31, 47), (47, 30), (53, 200), (411, 230)]


@pytest.fixture(scope='module', autouse=True)
def quick_compilation():
  """Halves the time of these tests, which is XLA's; the numbers stay."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)


def picture(size, seed=0):
  """uint8 [h, w, 3]: soft blobs and grain."""
  rng = np.random.default_rng(seed)
  blobs = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
  return np.clip(np.asarray(blobs) + rng.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)


def in_pixels(prompt, size):
  """A prompt of PROMPTS for an image of `size`; its mask, a seed, becomes logits."""
  prompt = {name: np.asarray(value) for name, value in prompt.items()}
  if 'points' in prompt:
    prompt['points'] = prompt['points'] * size[::-1]
  if 'box' in prompt:
    prompt['box'] = prompt['box'] * np.tile(size[::-1], 2)
  if 'mask' in prompt:
    rng = np.random.default_rng(int(prompt['mask']))
    prompt['mask'] = 4 * rng.normal(size=(4 * GRID, 4 * GRID)).astype(np.float32)
  return prompt


def ask(predictor, *, points=None, labels=None, box=None, mask=None, text=None, multimask=False):
  """What a predictor finds, by name."""
  prompt = dict(point_coords=points, point_labels=labels, box=box, mask_input=mask, multimask_output=multimask)
  logits, iou, low_res_logits = predictor.predict(**prompt, return_logits=True, text=text)
  masks, *_ = predictor.predict(**prompt, text=text)
  return SimpleNamespace(masks=masks, logits=logits, iou=iou, low_res_logits=low_res_logits)


def relative_error(ours, theirs):
  assert ours.shape == theirs.shape
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


class MetaPredictor:
  """segment_anything.SamPredictor step by step, with PIL for torchvision's resize of PIL images."""

  def __init__(self, sam):
    self.sam = sam

  def set_image(self, image):
    import torch

    scale = SIDE / max(image.shape[:2])
    self.size, self.input_size = image.shape[:2], tuple(int(length * scale + 0.5) for length in image.shape[:2])
    resized = np.array(Image.fromarray(image).resize(self.input_size[::-1], Image.Resampling.BILINEAR))
    with torch.no_grad():
      pixels = torch.as_tensor(resized).permute(2, 0, 1).contiguous()[None]
      self.features = self.sam.image_encoder(self.sam.preprocess(pixels))

  def predict(self, points=None, labels=None, box=None, mask=None, multimask=False):
    """Logits [M, h, w], IoU [M], low-resolution logits [M, S/4, S/4]."""
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

  modeling = segment_anything_modeling()
  threads = torch.get_num_threads()
  torch.set_num_threads(1)  # at this size threads only wait for each other
  sam = modeling.Sam(
    modeling.ImageEncoderViT(
      img_size=SIDE,
      embed_dim=24,
      depth=3,
      num_heads=2,
      mlp_ratio=4,
      out_chans=WIDTH,
      use_rel_pos=True,
      norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
      window_size=3,
      global_attn_indexes=(1,),
    ),
    modeling.PromptEncoder(WIDTH, (GRID, GRID), (SIDE, SIDE), mask_in_chans=16),
    modeling.MaskDecoder(
      transformer_dim=WIDTH,
      iou_head_hidden_dim=40,
      transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=48, num_heads=4),
    ),
  )
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():  # random everywhere, for zeros and ones would hide mistakes
    for name, tensor in sam.state_dict().items():
      centre = 1.0 if tensor.ndim == 1 and name.endswith('weight') else 0.0
      is_table = len(tensor) == 1 or name.endswith(('_tokens.weight', '_matrix'))
      scale = 0.3 if tensor.ndim == 1 else 1.0 if is_table else tensor[0].numel() ** -0.5
      tensor.copy_(centre + scale * torch.randn(tensor.shape, generator=generator))
  sam.eval()
  model = random_model(CONFIG)
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
def test_predictions_are_metas(peers, size):
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
def test_refining_an_earlier_mask_is_metas(peers):
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


class CountingDecoder(DitSam):
  """Notes for how many sparse tokens its decoder is traced."""

  traces = []

  def decode(self, embedding, sparse, *args, **kwargs):
    self.traces.append(sum(tokens.shape[1] for tokens in sparse))
    return super().decode(embedding, sparse, *args, **kwargs)


class CountingEncoder(ImageEncoder):
  """Counts how often it runs, compiled or not."""

  runs = []

  def __call__(self, *args, **kwargs):
    jax.debug.callback(lambda: self.runs.append(1))
    return super().__call__(*args, **kwargs)


def encodings():
  """How many images were encoded since the last call."""
  jax.effects_barrier()
  count = len(CountingEncoder.runs)
  CountingEncoder.runs.clear()
  return count


def counting_model(config):
  model = random_model(config)
  model.eval()
  model.__class__, model.image_encoder.__class__ = CountingDecoder, CountingEncoder
  return model


@pytest.fixture(scope='module')
def plain():
  """A predictor by a model that does not read."""
  return SamPredictor.from_model(counting_model(CONFIG))


@pytest.mark.slow
def test_masked_filling_changes_nothing():
  model = random_model(CONFIG, seed=1)
  rng = np.random.default_rng(0)
  embedding = jnp.asarray(rng.normal(size=(2, GRID, GRID, WIDTH)), jnp.float32)
  sparse, filling = (jnp.asarray(rng.normal(size=(2, count, WIDTH)), jnp.float32) for count in (3, 5))
  decode = jax.jit(lambda tokens, mask: model.decode(embedding, tokens, None, (SIDE, SIDE), sparse_mask=mask))
  exact = decode([sparse], None)
  masked = decode([sparse, 9 * filling], np.arange(8)[None].repeat(2, 0) < 3)
  seen = decode([sparse, 9 * filling], np.ones((2, 8), bool))
  for name in ('logits', 'low_res_logits', 'iou'):
    assert relative_error(getattr(masked, name), getattr(exact, name)) <= 1e-5
    assert relative_error(getattr(seen, name), getattr(exact, name)) > 1e-3


@pytest.mark.slow
def test_a_changing_number_of_points_hardly_compiles(plain):
  CountingDecoder.traces.clear()
  points, labels = np.random.default_rng(0).random((8, 2)) * 40, [1, 0, 1, 1, 0, 0, 1, 0]
  for size in ((40, 70), (90, 20)):
    plain.set_image(picture(size))
    ask(plain)
    for box in (None, [1, 2, 15, 20]):
      for count in range(1, 9):
        ask(plain, points=points[:count], labels=labels[:count], box=box)
  assert CountingDecoder.traces == [8, 16]


def test_an_image_is_encoded_once(plain):
  encodings()
  plain.set_image(picture((40, 70)))
  before = ask(plain, box=[5, 5, 30, 30])
  ask(plain, points=[[3, 4]], labels=[1])
  assert encodings() == 1
  plain.set_image(picture((70, 40), seed=1))
  other = ask(plain, box=[5, 5, 30, 30])
  assert encodings() == 1 and other.masks.shape == (1, 70, 40)
  assert relative_error(other.low_res_logits, before.low_res_logits) > 1e-2
  with pytest.raises(UserError, match='nowhere.png'):
    plain.set_image('nowhere.png')
  np.testing.assert_array_equal(ask(plain, box=[5, 5, 30, 30]).logits, other.logits)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  vocabulary = tmp_path_factory.mktemp('words') / 'vocab.txt'
  vocabulary.write_text('\n'.join(WORDS) + '\n')
  return Tokenizer(vocabulary, 6)


@pytest.fixture(scope='module', params=['layer_wise', 'none'])
def reader(request, tokenizer):
  """A predictor by a model that reads, with text in the image encoder or without."""
  decoder = dataclasses.replace(small_config().mask_decoder, depth=1)
  model = counting_model(small_config(fusion=request.param, mask_decoder=decoder))
  return SamPredictor.from_model(model, tokenizer), model


@pytest.mark.slow
def test_a_sentence_alone_is_the_segmenters(reader, tokenizer):
  predictor, segmenter = reader[0], Segmenter.from_model(reader[1], tokenizer)
  for size in ((64, 64), (33, 90), (70, 41), (20, 31)):
    predictor.set_image(picture(size))
    for text in ('the red circle', 'small blue square'):
      result, expected = ask(predictor, text=text), segmenter(picture(size), text)
      assert result.masks.shape == (1, *size)
      assert relative_error(result.logits, expected.logits) <= 1e-4
      assert abs(result.iou[0] - expected.iou) <= 1e-4 * abs(expected.iou)
      sure = np.abs(expected.logits - np.log(0.35 / 0.65)) > 1e-3 * np.abs(expected.logits).max()
      assert (result.masks == expected.masks)[sure].all()  # the threshold is the model's


@pytest.mark.slow
def test_clicks_after_a_sentence_cost_the_decoder_only(reader):
  predictor, model = reader
  again = 0 if model.config.fusion == 'none' else 1  # the embedding depends on the text, or not
  encodings()
  predictor.set_image(picture((64, 50)))
  first = ask(predictor, text='the red circle')
  for x in (10, 20, 30):
    clicked = ask(predictor, text='the red circle', points=[[x, 20]], labels=[1])
  assert encodings() == 1 and relative_error(clicked.logits, first.logits) > 1e-3
  second = ask(predictor, text='the blue square')
  assert encodings() == again and relative_error(second.logits, first.logits) > 1e-3
  alone = ask(predictor, points=[[10, 20]], labels=[1])
  assert encodings() == again
  ask(predictor, text='the blue square')
  np.testing.assert_array_equal(ask(predictor, points=[[10, 20]], labels=[1]).logits, alone.logits)
  assert encodings() == 0
  np.testing.assert_array_equal(ask(predictor, text='the red circle').logits, first.logits)
  assert encodings() == 0  # the last sentences are remembered


@pytest.mark.slow
@pytest.mark.parametrize('reader', ['layer_wise'], indirect=True)
def test_sentences_go_with_points_and_boxes(reader, tokenizer):
  """As the whole model has it, prompts put by hand to where the image lies in the square."""
  predictor, model = reader
  size, text = (32, 96), 'the blue square'  # centred in 64 x 64: 21 rows from row 21
  prompt = in_pixels(PROMPTS['points with a box'], size)
  scale, corner = np.asarray([64 / 96, 21 / 32]), np.asarray([0, 21])
  image = picture(size)
  predictor.set_image(image)
  result = ask(predictor, **prompt, text=text)
  forward = nnx.jit(lambda model, images, ids, mask, prompts: model(images, ids, mask, **prompts))
  expected = forward(
    model,
    letterbox(image, 64, IMAGENET_MEAN, IMAGENET_STD)[0][None],
    *tokenizer([text]),
    dict(
      points=jnp.asarray(prompt['points'] * scale + corner, jnp.float32)[None],
      point_labels=prompt['labels'][None],
      boxes=jnp.asarray(prompt['box'] * np.tile(scale, 2) + np.tile(corner, 2), jnp.float32)[None],
    ),
  )
  assert relative_error(result.low_res_logits, np.asarray(expected.low_res_logits)) <= 1e-4
  assert relative_error(result.iou, np.asarray(expected.iou)) <= 1e-4


@pytest.mark.parametrize('reader', ['layer_wise'], indirect=True)
def test_models_on_disk(reader, tokenizer, tmp_path):
  folder = saved_model.save(tmp_path / 'model', reader[1], vocabulary=tokenizer.vocabulary_file)
  predictor = SamPredictor(folder)
  assert predictor.config == reader[1].config
  np.testing.assert_array_equal(predictor.tokenizer(['the red circle']), tokenizer(['the red circle']))
  with pytest.raises(UserError, match='nowhere'):
    SamPredictor(tmp_path / 'nowhere')


@pytest.mark.slow
def test_the_shipped_sam_follows_boxes_and_clicks():
  predictor = SamPredictor('sam_shapes')
  ious = []
  for index in range(3):
    scene, _ = described_scene(scenes_config({}), 'test', index)
    predictor.set_image(Image.fromarray(scene.image).resize((200, 200)))
    for mask in scene.masks:
      mask = np.asarray(Image.fromarray(mask).resize((200, 200), Image.Resampling.NEAREST))
      y, x = np.nonzero(mask)
      middle = np.argmin((y - y.mean()) ** 2 + (x - x.mean()) ** 2)
      for prompt in (dict(box=[x.min(), y.min(), x.max(), y.max()]), dict(points=[[x[middle], y[middle]]], labels=[1])):
        found = ask(predictor, **prompt).masks[0]
        ious.append((found & mask).sum() / (found | mask).sum())
  assert np.mean(ious) >= 0.75


POINT = dict(points=[[1, 2]], labels=[1])


@pytest.mark.parametrize(
  'prompt, told',
  [
    (dict(points=[[1, 2]]), 'points without labels'),
    (dict(labels=[1]), 'labels without points'),
    (dict(points=[1, 2], labels=[1]), r'points have shape \(2,\).*\[P, 2\]'),
    (dict(points=[[1, 2, 3]], labels=[1]), r'points have shape \(1, 3\)'),
    (dict(points=np.zeros((0, 2)), labels=[]), r'points have shape \(0, 2\).*None'),
    (dict(points=[[[1, 2]]], labels=[[1]]), r'points have shape \(1, 1, 2\)'),
    (dict(points=[[1, 2], [3]], labels=[1, 1]), 'points: not an array of numbers'),
    (dict(points=[['a', 'b']], labels=[1]), 'points: not an array of numbers'),
    (dict(points=[[1, np.nan]], labels=[1]), 'points: NaN'),
    (dict(points=[[1, np.inf]], labels=[1]), 'points: NaN or infinite'),
    (dict(points=[[1, 2]], labels=[1, 0]), r'labels have shape \(2,\): expected \(1,\)'),
    (dict(points=[[1, 2]], labels=1), r'labels have shape \(\)'),
    (dict(points=[[1, 2]], labels=[-1]), 'label -1: expected 1'),
    (dict(points=[[1, 2]], labels=[2]), 'label 2: expected 1'),
    (dict(points=[[1, 2]], labels=[0.5]), 'label 0.5: expected 1'),
    (dict(box=[1, 2, 3]), r'box has shape \(3,\).*\(x0, y0, x1, y1\)'),
    (dict(box=[[1, 2, 3, 4]] * 2), r'box has shape \(2, 4\)'),
    (dict(box=[1, 2, 3e38, 4]), r'box: a number of size 3e\+38; expected at most 1e\+08'),
    (dict(points=np.zeros((1001, 2)), labels=np.ones(1001)), '1,001 points: expected at most 1,000'),
    (dict(mask=np.full((20, 20), 1e9)), 'mask: a number of size'),
    (dict(box=[1, 2, np.nan, 4]), 'box: NaN'),
    (dict(box=[30, 2, 10, 4]), r'box \[30.0, 2.0, 10.0, 4.0\].*x0 <= x1'),
    (dict(POINT, mask=np.zeros((80, 80))), r'mask has shape \(80, 80\): expected \(20, 20\)'),
    (dict(mask=np.zeros((3, 20, 20))), r'mask has shape \(3, 20, 20\)'),
    (dict(mask=np.full((20, 20), np.nan)), 'mask: NaN'),
    (dict(POINT, text='the red circle'), "'the red circle': this model has no text encoder"),
  ],
)
def test_prompts_that_are_no_prompts(plain, prompt, told):
  plain.set_image(picture((9, 7)))
  with pytest.raises(UserError, match=told) as error:
    ask(plain, **prompt)
  assert '\n' not in str(error.value)


def test_there_must_be_an_image():
  with pytest.raises(UserError, match='call set_image first'):
    ask(SamPredictor.from_model(random_model(CONFIG)), **POINT)


@pytest.mark.parametrize('reader', ['layer_wise'], indirect=True)
def test_sentences_that_say_nothing(reader):
  predictor, model = reader
  predictor.set_image(picture((8, 8)))
  for text in ('', ' \n', 3):
    with pytest.raises(UserError, match='expected words'):
      ask(predictor, text=text)
  wordless = SamPredictor.from_model(model)
  wordless.set_image(picture((8, 8)))
  with pytest.raises(UserError, match='no tokenizer'):
    wordless.predict(text='the red circle')
