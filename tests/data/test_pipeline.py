"""Batches contain the stored data; order and randomness depend only on the seed."""

import collections
import itertools

import numpy as np
import pytest

from ditsam_jax.data import pipeline
from ditsam_jax.data.augmentation import AugmentationConfig
from ditsam_jax.data.evaluation_batches import evaluation_batches
from ditsam_jax.data.prompts import PromptConfig
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from ditsam_jax.geometry.letterbox import centre, letterbox, normalise, resize, resize_mask
from ditsam_jax.models.prompt_encoder import ABSENT
from ditsam_jax.tokenization import Tokenizer

SIZE = 64
INPUT = dict(image_size=SIZE, pixel_mean=(0.5, 0.4, 0.3), pixel_std=(0.2, 0.3, 0.25))
PLAIN = AugmentationConfig(scale_steps=1, jitter_probability=0, flip_probability=0)
FLIPS = AugmentationConfig(scale_steps=1, jitter_probability=0)
EVERYTHING = AugmentationConfig(scale_steps=2, scale_stride=16)


@pytest.fixture(scope='module')
def source(tiny):
  return ReferringSource(tiny.directory, 'train')


@pytest.fixture(scope='module')
def tokenizer(vocabulary_file):
  return Tokenizer(vocabulary_file, 8)


def train(source, tokenizer, augmentation=PLAIN, *, batch_size=5, seed=3, **options):
  return pipeline.train_batches(
    source, tokenizer, **INPUT, augmentation=augmentation, batch_size=batch_size, seed=seed, **options
  )


def first(batches, count):
  return list(itertools.islice(iter(batches), count))


def assert_equal(batches, others):
  assert len(batches) == len(others)
  for batch, other in zip(batches, others):
    assert batch.keys() == other.keys()
    for name in batch:
      np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def masks_of(batches):
  return [mask.tobytes() for batch in batches for mask in batch['mask']]


def squares(source, index, mirrored):
  """Image and mask of `source[index]`, letterboxed, computed in the simplest way."""
  sample = source[index]
  step = -1 if mirrored else 1
  image, _ = letterbox(np.ascontiguousarray(sample.image[:, ::step]), SIZE, INPUT['pixel_mean'], INPUT['pixel_std'])
  mask, _ = centre(sample.mask[:, ::step].astype(np.uint8), SIZE)
  return image, mask


def test_a_batch_has_the_documented_shapes_and_dtypes(source, tokenizer):
  [batch] = first(train(source, tokenizer, EVERYTHING), 1)
  assert {name: (array.shape, array.dtype.name) for name, array in batch.items()} == {
    'image': ((5, 64, 64, 3), 'float32'),
    'mask': ((5, 64, 64), 'uint8'),
    'token_ids': ((5, 8), 'int32'),
    'token_mask': ((5, 8), 'int32'),
  }
  assert set(np.unique(batch['mask'])) == {0, 1}


def test_image_mask_and_expression_match_mirrored_or_not(source, tokenizer):
  known = {
    squares(source, index, mirrored)[1].tobytes(): (index, mirrored)
    for index in range(len(source))
    for mirrored in (False, True)
  }
  turned = collections.Counter()
  for batch in first(train(source, tokenizer, FLIPS), 20):
    for image, mask, ids in zip(batch['image'], batch['mask'], batch['token_ids']):
      index, mirrored = known[mask.tobytes()]
      turned[mirrored] += 1
      np.testing.assert_array_equal(image, squares(source, index, mirrored)[0])
      texts = source[index].expressions
      allowed = [text.replace('left', 'right') if mirrored else text for text in texts]
      assert ids.tolist() in tokenizer(allowed)[0].tolist()
  assert min(turned[True], turned[False]) > 25  # of 100


def test_each_epoch_visits_every_object_once_in_a_new_order(source, tokenizer):
  every = sorted(squares(source, index, False)[1].tobytes() for index in range(len(source)))
  assert len(set(every)) == len(every)
  visits = masks_of(first(train(source, tokenizer, batch_size=1), 2 * len(source)))
  one, two = visits[: len(source)], visits[len(source) :]
  assert sorted(one) == every and sorted(two) == every
  assert one != two


def test_hosts_load_their_rows_of_the_global_batch(source, tokenizer):
  """For any assignment of rows to hosts, and beyond the end of an epoch."""
  whole = first(train(source, tokenizer, EVERYTHING, batch_size=6), 12)
  for shares in ([[0, 1, 2], [3, 4, 5]], [[0, 3], [1, 4], [2, 5]], [[4, 5], [0, 1, 2, 3]]):
    for rows in map(np.array, shares):
      part = first(train(source, tokenizer, EVERYTHING, batch_size=6, rows=rows), 12)
      assert_equal(part, [{name: array[rows] for name, array in batch.items()} for batch in whole])


@pytest.mark.multiprocess
def test_a_run_resumes_with_other_hosts_threads_and_processes(source, tokenizer):
  stream = train(source, tokenizer, EVERYTHING, batch_size=6, threads=1)
  whole = first(stream, 14)
  stream = train(source, tokenizer, EVERYTHING, batch_size=6, threads=3)
  first(stream, 9)
  for options in (dict(rows=np.array([1, 5]), threads=0), dict(rows=np.array([2, 3]), processes=2)):
    other = train(source, tokenizer, EVERYTHING, batch_size=6, **options)
    other.set_state(stream.get_state())
    assert_equal(
      first(other, 5), [{name: array[options['rows']] for name, array in batch.items()} for batch in whole[9:]]
    )


def test_every_expression_is_used(source, tokenizer):
  texts = {text for index in range(len(source)) for text in source[index].expressions}
  wanted = {tuple(row) for row in tokenizer(sorted(texts))[0].tolist()}
  seen = {
    tuple(row)
    for batch in first(train(source, tokenizer, batch_size=len(source)), 10)
    for row in batch['token_ids'].tolist()
  }
  assert seen == wanted


def test_batches_depend_on_the_seed(source, tokenizer):
  batches = first(train(source, tokenizer, EVERYTHING), 3)
  assert_equal(first(train(source, tokenizer, EVERYTHING), 3), batches)
  assert masks_of(first(train(source, tokenizer, EVERYTHING, seed=4), 3)) != masks_of(batches)


@pytest.mark.multiprocess
@pytest.mark.parametrize('options', [dict(threads=0), dict(threads=5), dict(threads=1, processes=2)], ids=str)
def test_threads_and_processes_do_not_change_batches(source, tokenizer, options):
  expected = first(train(source, tokenizer, EVERYTHING, threads=1), 12)
  assert_equal(first(train(source, tokenizer, EVERYTHING, **options), 12), expected)


def test_keeping_the_data_in_memory_does_not_change_batches(tiny, source, tokenizer):
  kept = ReferringSource(tiny.directory, 'train', in_memory=True)
  assert_equal(first(train(kept, tokenizer, EVERYTHING), 12), first(train(source, tokenizer, EVERYTHING), 12))


@pytest.mark.parametrize('kind', ['train', 'prompt'])
def test_a_restored_iterator_yields_the_same_batches(source, tokenizer, kind):
  def batches():
    if kind == 'train':
      return train(source, tokenizer, EVERYTHING)
    return pipeline.prompt_batches(source, **INPUT, augmentation=EVERYTHING, batch_size=3, seed=5)

  interrupted = iter(batches())
  for _ in range(17):  # past the end of an epoch
    next(interrupted)
  state = interrupted.get_state()
  expected = first(interrupted, 6)
  resumed = iter(batches())
  resumed.set_state(state)
  assert_equal(first(resumed, 6), expected)


def prompt_batches(source, prompt, *, count, augmentation=FLIPS):
  batches = pipeline.prompt_batches(
    source, **INPUT, augmentation=augmentation, batch_size=4, seed=1, prompt=prompt, objects_per_image=3
  )
  return first(batches, count)


def all_masks(source, image_square):
  """The masks of the image that `image_square` shows at its top left, as it is or mirrored, [n, S, S]."""
  for number, step in itertools.product(range(source.num_images), (1, -1)):
    record = source.image(number)
    resized = resize(np.ascontiguousarray(record.image()[:, ::step]), SIZE)
    height, width = resized.shape[:2]
    square = np.zeros((SIZE, SIZE, 3), np.float32)
    square[:height, :width] = normalise(resized, INPUT['pixel_mean'], INPUT['pixel_std'])
    if np.array_equal(square, image_square):
      masks = np.zeros((record.num_objects, SIZE, SIZE), np.uint8)
      for index in range(record.num_objects):
        masks[index, :height, :width] = resize_mask(np.ascontiguousarray(record.mask(index)[:, ::step]), SIZE)
      return masks
  raise AssertionError('no such image')


def test_visual_targets_are_objects_of_their_image_drawn_without_repeats_where_possible(source):
  for batch in prompt_batches(source, PromptConfig(point=0, box=1, none=0), count=6):
    assert batch['masks'].shape == (4, 3, 64, 64) and batch['masks'].dtype == np.uint8
    assert batch['points'].shape == (4, 3, 2, 2) and batch['points'].dtype == np.float32
    assert batch['labels'].shape == (4, 3, 2) and batch['labels'].dtype == np.int32
    for image, masks in zip(batch['image'], batch['masks']):
      stored = [mask.tobytes() for mask in all_masks(source, image)]
      drawn = {mask.tobytes() for mask in masks}
      assert drawn <= set(stored)
      if len(stored) >= 3:
        assert len(drawn) == 3


def test_without_a_prompt_the_target_is_all_objects(source):
  [batch] = prompt_batches(source, PromptConfig(point=0, box=0, none=1), count=1)
  assert (batch['labels'] == ABSENT).all()
  for image, masks in zip(batch['image'], batch['masks']):
    union = all_masks(source, image).any(0)
    for mask in masks:
      np.testing.assert_array_equal(mask, union)


def test_points_lie_in_their_targets(source):
  for batch in prompt_batches(source, PromptConfig(point=1, box=0, none=0), count=6):
    x, y = np.moveaxis(batch['points'][:, :, 0].astype(int), -1, 0)
    rows, targets = np.indices(x.shape)
    assert batch['masks'][rows, targets, y, x].all()


def test_clicks_beside_all_objects_lie_in_the_image(source):
  prompt = PromptConfig(point=0, box=0, background=1, none=0)
  for batch in prompt_batches(source, prompt, count=6, augmentation=EVERYTHING):
    inside = (batch['image'] != 0).any(-1)
    size = np.stack([inside.any(1).sum(1), inside.any(2).sum(1)], -1)  # width, height
    assert (batch['points'][:, :, 0] < size[:, None]).all() and not batch['masks'].any()
    assert batch['masks'].shape == (4, 3, 64, 64)


@pytest.mark.parametrize('number', [1, 129, 1000])
def test_an_image_may_have_any_number_of_objects(number):
  masks = np.random.default_rng(0).random((number, 30, 40)) < 0.5

  class Record:
    num_objects = number

    def image(self):
      return np.zeros((30, 40, 3), np.uint8)

    def mask(self, index):
      return masks[index]

  class Source:
    num_images = 1

    def image(self, index):
      return Record()

  for mirrored in (0, 1):
    augmentation = AugmentationConfig(scale_steps=1, jitter_probability=0, flip_probability=mirrored)
    options = dict(INPUT, augmentation=augmentation, batch_size=1, seed=0, prompt=PromptConfig(point=1, box=0, none=0))
    batch = next(pipeline.prompt_batches(Source(), **options, objects_per_image=number))
    expected = {resize_mask(mask, SIZE)[:, :: -1 if mirrored else 1].tobytes() for mask in masks}
    assert {mask[:48].tobytes() for mask in batch['masks'][0]} == expected


def evaluate(source, tokenizer, batch_size=7, **options):
  return list(evaluation_batches(source, tokenizer, **INPUT, batch_size=batch_size, **options))


def counted(batches):
  return [info for batch, infos in batches for info, valid in zip(infos, batch['valid']) if valid]


def test_evaluation_visits_every_expression_once_in_stored_order(tiny, source, tokenizer):
  batches = evaluate(source, tokenizer)
  expected = [
    (image.image_id, one.object_id, index, text, kind)
    for image in tiny.images['train']
    for index, one in enumerate(image.objects)
    for text, kind in zip(one.expressions, one.kinds)
  ]
  assert [
    (info.image_id, info.object_id, info.object_index, info.expression, info.kind) for info in counted(batches)
  ] == expected
  assert all(batch['image'].shape[0] == len(infos) == 7 for batch, infos in batches)
  assert len(batches) == -(-len(expected) // 7)
  assert all(batch['valid'].all() for batch, _ in batches[:-1])


def test_evaluation_rows_contain_image_mask_and_text_of_their_sample(tiny, source, tokenizer):
  stored = {image.image_id: image for image in tiny.images['train']}
  for batch, infos in evaluate(source, tokenizer):
    assert batch['valid'].dtype == bool and batch['mask'].dtype == np.uint8
    for row, info in enumerate(infos):
      image = stored[info.image_id]
      one = image.objects[info.object_index]
      assert info.image_categories == tuple(other.category for other in image.objects)
      assert info.original_size == image.image.shape[:2]
      np.testing.assert_array_equal(info.mask, one.mask)
      square, box = letterbox(image.image, SIZE, INPUT['pixel_mean'], INPUT['pixel_std'])
      assert info.letterbox == box
      np.testing.assert_array_equal(batch['image'][row], square)
      np.testing.assert_array_equal(batch['mask'][row][box.window], one.mask)  # the long side is 64 already
      assert batch['mask'][row].sum() == one.mask.sum()
      np.testing.assert_array_equal(batch['token_ids'][row], tokenizer([info.expression])[0][0])


def test_a_limit_spreads_samples_over_the_whole_split(source, tokenizer):
  everything = counted(evaluate(source, tokenizer))
  some = counted(evaluate(source, tokenizer, limit=10))
  names = [(info.object_id, info.expression) for info in everything]
  places = [names.index((info.object_id, info.expression)) for info in some]
  steps = np.diff(places)
  assert len(places) == 10 and places[0] == 0
  assert steps.max() - steps.min() <= 1
  assert len(counted(evaluate(source, tokenizer, limit=10_000))) == len(everything)


@pytest.mark.parametrize('hosts', [2, 3, 40])
def test_hosts_evaluate_each_sample_once_in_equal_numbers_of_batches(source, tokenizer, hosts):
  shares = [evaluate(source, tokenizer, shard=(host, hosts)) for host in range(hosts)]
  assert len({len(share) for share in shares}) == 1
  names = [(info.object_id, info.expression) for share in shares for info in counted(share)]
  assert names == [(info.object_id, info.expression) for info in counted(evaluate(source, tokenizer))]


def test_threads_do_not_change_evaluation_order(source, tokenizer):
  one, many = evaluate(source, tokenizer, threads=1), evaluate(source, tokenizer, threads=6)
  assert_equal([batch for batch, _ in one], [batch for batch, _ in many])


def test_a_limit_of_zero_is_refused(source, tokenizer):
  with pytest.raises(UserError, match='limit 0'):
    evaluate(source, tokenizer, limit=0)
