"""Any bad content of refs and instances.json is counted as a problem or refused in one line."""

import json
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest

from ditsam_jax.data.preparation import images, problems
from ditsam_jax.data.preparation.masks import MaskError, draw
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.data.refcoco import catalogue
from ditsam_jax.data.refcoco.annotations import read_instances
from ditsam_jax.data.refcoco.plan import plan
from ditsam_jax.data.refcoco.refs import read_pickle, read_refs
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_OBJECTS, MAX_SENTENCES
from ditsam_jax.tokenization import MAX_TEXT_BYTES
from tests.data.refcoco_downloads import Downloads, make, rectangle

ROOT = Path(__file__).parents[2]


from tests.data.refusals import refusal


def found_in(downloads: Downloads) -> dict[str, int]:
  """Returns the number of problems by kind; checks that reports are printable."""
  file = downloads.folder / ('grefs(unc).json' if downloads.name == 'grefcoco' else 'refs(unc).p')
  refs, found = read_refs(file), Problems()
  instances = read_instances(
    downloads.folder / 'instances.json',
    {ref.image_id for ref in refs},
    {one for ref in refs for one in ref.annotation_ids},
  )
  splits = catalogue.FAMILY[downloads.name].partition('unc').splits
  planned = plan(refs, instances, downloads.image_dir, splits, found, may_lack_target=downloads.name == 'grefcoco')
  for encoded in images.encode_all((image for some in planned.values() for image in some), 0):
    for problem in encoded.problems:
      found.add(*problem)
  assert all(line.isprintable() and len(line) < 1000 for line in found.report())
  return found.counts


def no_sentences(made):
  made.refs[0]['sentences'] = []
  return {problems.NO_SENTENCE: 1}


def blank_sentences(made):
  made.refs[0]['sentences'] = [{'sent': ' \t'}, {'sent': ''}, {'sent': 'a box'}]
  return {problems.BLANK_SENTENCE: 2}


def long_sentence(made):
  made.refs[0]['sentences'] = [{'sent': 'x' * (MAX_TEXT_BYTES + 1)}, {'sent': 'x' * MAX_TEXT_BYTES}]
  return {problems.LONG_SENTENCE: 1}


def many_sentences(made):
  made.refs[0]['sentences'] = [{'sent': 'a box'}] * (MAX_SENTENCES + 1)
  made.refs[1]['sentences'] = [{'sent': 'a box'}] * MAX_SENTENCES
  return {problems.MANY_SENTENCES: 1}


def many_refs(made):
  made.refs += [made.refs[0] | {'ref_id': 9000 + number} for number in range(MAX_OBJECTS)]
  return {problems.MANY_OBJECTS: 4}


def repeated_ref(made):
  made.refs += [dict(made.refs[0]), dict(made.refs[3])]
  return {problems.REPEATED_ID: 2}


def no_target(made):
  made.refs[0]['ann_id'], made.refs[1]['ann_id'] = -1, [-1]
  return {problems.NO_TARGET: 2}


def file_names(made):
  names = ['../train2014/x.jpg', '/etc/passwd', 'C:\\x.jpg', 'x\0.jpg', 'y' * 300 + '.jpg']
  for image, name in zip(made.images, names, strict=True):
    image['file_name'] = name
  return {problems.FILE_NAME: 5}


def image_sizes(made):
  for image, height in zip(made.images, (0, -5, 2**40, 10**9), strict=False):
    image['height'] = height
  return {problems.IMAGE_SIZE: 4}


def masks(made):
  for annotation, segmentation in zip(
    made.annotations,
    [
      {'size': [48, 64], 'counts': [2**62] * 4 + [48 * 64]},
      {'size': [48, 64], 'counts': 'oooooooo'},
      [[1e300] * 6],
      [[10**400] * 6],
      [[float('nan')] * 6],
      [[float('inf')] * 6],
      [[1, 2, 3, 4, 5, 6, 7]],
      'text',
      7,
      [{}],
    ],
    strict=False,
  ):
    annotation['segmentation'] = segmentation
  return {problems.MALFORMED_MASK: 9, problems.LARGE_MASK: 1}


@pytest.mark.parametrize(
  'fault',
  [
    no_sentences,
    blank_sentences,
    long_sentence,
    many_sentences,
    many_refs,
    repeated_ref,
    no_target,
    file_names,
    image_sizes,
    masks,
  ],
  ids=lambda fault: fault.__name__,
)
def test_problems_of_refs_and_instances_are_counted(tmp_path, fault):
  made = make(tmp_path)
  expected = fault(made)
  assert found_in(made.write()) == expected


def test_names_in_files_cannot_forge_output_lines(tmp_path):
  made = make(tmp_path)
  made.refs[0]['split'] = 'x\nerror: pwned\x1b[31m'
  assert found_in(made.write()) == {problems.UNKNOWN_SPLIT: 1}


@pytest.mark.parametrize(
  'change, message',
  [
    (lambda one: one['annotations'][0].update(category_id=[1]), r'\[1\], expected a whole number'),
    (lambda one: one['annotations'][0].update(category_id='person'), 'expected a whole number'),
    (lambda one: one['annotations'][0].update(image_id={}), 'expected a whole number'),
    (lambda one: one['categories'][0].update(id=None), 'None, expected a whole number'),
    (lambda one: one['categories'][0].update(name=3), '3, expected text'),
    (lambda one: one['categories'][0].update(name='\ud800'), 'surrogate'),
    (lambda one: one['images'][0].update(height=float('inf')), 'inf, expected a whole number'),
    (lambda one: one['images'][0].update(height=float('nan')), 'nan, expected a whole number'),
    (lambda one: one['images'][0].update(height='480'), "'480', expected a whole number"),
    (lambda one: one['images'][0].update(file_name=None), 'None, expected text'),
    (lambda one: one.update(images=7), 'not in COCO format'),
    (lambda one: one.update(annotations=None), 'not in COCO format'),
  ],
)
def test_malformed_instances_are_refused_in_one_line(tmp_path, change, message):
  made = make(tmp_path).write()
  file = made.folder / 'instances.json'
  content = json.loads(file.read_text())
  change(content)
  file.write_text(json.dumps(content))
  with pytest.raises(UserError, match=f'instances.json .*{message}'):
    read_instances(file, {581000}, {1})


def endless():
  value = ['x']
  for _ in range(60):
    value = [value, value]
  return value


@pytest.mark.parametrize(
  'change',
  [
    {'ref_id': endless()},  # 2**60 items if printed in full
    {'split': endless()},
    {'image_id': 10**5000},  # Python refuses to print it
    {'ann_id': [2**63]},
    {'split': 'a\ud800'},
    {'sentences': [{'sent': '\udfff'}]},
    {'sentences': [endless()]},
    {'sentences': 'text'},
    {'ref_id': float('nan')},
    {'ref_id': True},
  ],
)
def test_refs_with_bad_values_are_refused_in_one_line(tmp_path, change):
  made = make(tmp_path)
  file = tmp_path / 'refs(unc).p'
  file.write_bytes(pickle.dumps([made.refs[0] | change], 4))
  assert 'ref 0 differs from the official format' in refusal(read_refs, file)


@pytest.mark.parametrize(
  'data',
  [
    b'\x80\x02]r\xff\xff\xff\x7f.',  # C's unpickler allocates 32 GiB for the memo
    b'(lp2000000000\n.',
    b'\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.',
    b'\x80\x04\x8b\xff\xff\xff\x7f.',
    b'(' * 100_000,
    b'\x80\x02' + b'(' * 50_000 + b't' * 50_000 + b'.',
  ],
)
def test_pickles_that_demand_memory_or_depth_are_refused(tmp_path, data):
  file = tmp_path / 'refs(unc).p'
  file.write_bytes(data)
  started = time.monotonic()
  try:
    read_pickle(file)
  except UserError as error:
    assert str(error).isprintable()
  assert 'refs(unc).p' in refusal(read_refs, file) and time.monotonic() - started < 5


@pytest.mark.slow
def test_five_thousand_refs_are_read_in_seconds(tmp_path):
  made = make(tmp_path)
  file = tmp_path / 'refs(unc).p'
  file.write_bytes(pickle.dumps([made.refs[0] | {'ref_id': number} for number in range(5000)], 2))
  started = time.process_time()
  assert len(read_refs(file)) == 5000
  assert time.process_time() - started < 10  # official files have ten times as many


def test_polygons_that_would_take_gigabytes_to_draw_are_refused():
  zigzag = np.tile([0.0, 0.0, 4000.0, 3000.0], 10_000)
  with pytest.raises(MaskError) as error:
    draw([zigzag], 3000, 4000)
  assert error.value.kind == problems.MALFORMED_MASK
  polygon, mask = rectangle(3000, 4000, 10, 20, 2900, 3900)
  np.testing.assert_array_equal(draw([np.array(polygon)], 3000, 4000), mask)


NASTY = [
  None,
  True,
  -1,
  2**63,
  10**400,
  1.5,
  float('nan'),
  float('inf'),
  1e300,
  '',
  '\ud800',
  '\n\x1b[31m',
  '..',
  'a\0b',
]
NASTY += ['x' * 100_000, [], {}, [[]], [None], [1, None], [[1e300] * 6], {'size': None, 'counts': [1]}]
NASTY += [{'size': [48, 64], 'counts': [2**62] * 4 + [3072]}, {'size': [48, 64], 'counts': [3072, None]}]


@pytest.mark.parametrize('seed', range(4))
def test_random_bad_values_are_problems_or_one_line_errors(tmp_path, seed):
  chance = random.Random(seed)
  made = make(tmp_path, chance.choice(['refcoco', 'grefcoco']))
  whole = json.dumps({'refs': made.refs, 'images': made.images, 'annotations': made.annotations})
  for _ in range(60):
    content = json.loads(whole)
    for _ in range(chance.choice([1, 1, 3])):
      places = []  # containers and their keys
      heap = [content]
      while heap:
        one = heap.pop()
        for key, value in one.items() if isinstance(one, dict) else enumerate(one):
          places.append((one, key))
          heap += [value] if isinstance(value, dict | list) else []
      container, key = chance.choice(places)
      container[key] = chance.choice(NASTY)
    made.refs, made.images, made.annotations = content['refs'], content['images'], content['annotations']
    try:
      if made.name == 'grefcoco':
        made.write()
      else:
        made.folder.mkdir(parents=True, exist_ok=True)
        (made.folder / 'refs(unc).p').write_bytes(pickle.dumps(made.refs, 2))
        refs, made.refs = made.refs, []
        made.write()
        (made.folder / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))
    except (TypeError, UnicodeEncodeError):  # not storable in a file
      continue
    try:
      found_in(made)
    except UserError as error:
      assert str(error).isprintable() and len(str(error)) < 700
