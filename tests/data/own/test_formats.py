"""Every format is detected and prepared with the original images, masks and sentences."""

import csv
import json
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from ditsam_jax import prepare
from ditsam_jax.data import datasets
from ditsam_jax.data.own import builder, formats
from ditsam_jax.data.own.entries import Context
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.errors import UserError
from tests.data.own.pictures import compressed, jpeg, make, polygon, uncompressed

SPLITS = ('train', 'train', 'train', 'train', 'val', 'test')
TEXTS = [[f'box {index}', 'the box'] for index in range(6)]


@pytest.fixture
def own(tmp_path):
  return make(tmp_path)


def check(own, texts=TEXTS, splits=SPLITS, exact=True, nothing=()):
  """Checks that every sample of the prepared data equals its source."""
  found = {}
  for split in dict.fromkeys(splits):
    source = datasets.open_split('mine', own.root / 'data', split)
    for index in range(len(source)):
      sample = source[index]
      name = sample.expressions[0].removeprefix('box ') + '.png'
      assert name not in found and splits[int(name[0])] == split
      assert list(sample.expressions) == texts[int(name[0])]
      truth = own.masks[name] & (name not in nothing)
      np.testing.assert_array_equal(sample.mask, truth)
      if exact:
        np.testing.assert_array_equal(sample.image, own.pixels[name])
      else:
        assert np.abs(sample.image.astype(int) - own.pixels[name]).mean() < 6
      found[name] = sample
  assert sorted(found) == sorted(own.masks)
  return found


def spelled(own, index):
  """Returns a mask in one of six representations."""
  mask = own.masks[f'{index}.png']
  forms = (f'masks/{index}.png', polygon(mask), compressed(mask), uncompressed(mask), polygon(mask)[0], None)
  return forms[index]


def rows(own):
  return [
    {
      'image': f'{index}.png',
      'text': TEXTS[index],
      'mask': spelled(own, index),
      'split': SPLITS[index],
      'id': f'photo {index}' if index % 2 else 100 + index,
      'category': 'box',
    }
    for index in range(6)
  ]


def test_json_lines(own):
  file = own.write_lines([*rows(own), '', '  '])
  assert formats.format_of(file) == 'jsonl'
  assert prepare.main(own.arguments(file)) == 0
  found = check(own, nothing=('5.png',))
  assert found['0.png'].object_id == 100 and found['0.png'].category == 'box'
  assert datasets.find('mine', own.root / 'data')[0].generalised
  listed = list(csv.DictReader((own.root / 'data' / 'mine' / 'objects.csv').open()))
  assert [(row['image'], row['id'], row['place']) for row in listed[:2]] == [
    ('0.png', '100', 'line 1'),
    ('1.png', 'photo 1', 'line 2'),
  ]
  assert int(listed[1]['mask_pixels']) == own.masks['1.png'].sum()


def test_a_byte_order_mark_and_windows_line_endings(own):
  file = own.write_lines(rows(own))
  file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n'))
  assert formats.format_of(file) == 'jsonl' and prepare.main(own.arguments(file)) == 0
  check(own, nothing=('5.png',))


@pytest.mark.parametrize('delimiter', [',', ';', '\t'])
def test_csv(own, delimiter):
  file = own.root / 'mine.csv'
  with file.open('w', newline='') as stream:
    names = ['split', 'mask', 'image', 'text', 'id', 'category', 'note']
    writer = csv.DictWriter(stream, names, delimiter=delimiter)
    writer.writeheader()
    for index, row in enumerate(rows(own)):
      mask = row['mask'] if isinstance(row['mask'], str) else json.dumps(row['mask'])
      writer.writerow(row | {'mask': mask, 'text': json.dumps(row['text']), 'note': 'a, "b"\nc'})
  assert formats.format_of(file) == 'csv'
  assert prepare.main(own.arguments(file)) == 0
  assert check(own, nothing=('5.png',))['4.png'].object_id == 104


@pytest.mark.parametrize(
  'text, message',
  [
    ('image,text\na,b\n', 'names the columns image, text; expected image, text and mask'),
    ('image,text,mask,text\na,b,null,c\n', 'each once'),
    ('image,text,mask\na,"b,null\n', 'not CSV'),
  ],
)
def test_bad_tables_are_refused_in_one_line(own, text, message):
  file = own.root / 'mine.csv'
  file.write_text(text)
  with pytest.raises(UserError, match=message):
    builder.prepare('mine', file, own.photos, own.root / 'data', format='csv', processes=0)


def test_bad_cells_are_counted(own):
  file = own.root / 'mine.csv'
  file.write_text('image,text,mask\n0.png,a,\n0.png,a\n0.png,a,[[1\n0.png,a,null\n')
  found, _ = read(file, 'csv', own)
  assert found.counts == {problems.NO_MASK: 1, problems.BAD_LINE: 2}
  assert any("line 2 ('mask' is empty; write null" in line for line in found.report())


def read(file, name, own):
  found = Problems()
  context = Context(file, own.photos, own.root, found, lambda text: None)
  return found, list(formats.read(name, context))


def coco(own, **changes):
  annotations = []
  for index in range(6):
    mask = own.masks[f'{index}.png']
    sentences = [
      {'sentences': TEXTS[index]},
      {'sentences': [{'sent': text, 'raw': text.upper(), 'sent_id': 1, 'tokens': []} for text in TEXTS[index]]},
      {'caption': TEXTS[index]},
      {'text': TEXTS[index][0]},
      {'noun_phrase': TEXTS[index][0]},
      {'sentences': TEXTS[index], 'caption': 'not this'},
    ][index]
    segmentation = [polygon(mask), compressed(mask), uncompressed(mask), polygon(mask), polygon(mask), None][index]
    annotations.append(
      {'id': 7 + index, 'image_id': 50 + index, 'category_id': 3, 'segmentation': segmentation, 'bbox': [], **sentences}
    )
  images = [
    {'id': 50 + index, 'file_name': f'{index}.png', 'height': len(own.masks[f'{index}.png']),
     'width': own.masks[f'{index}.png'].shape[1], 'split': SPLITS[index]}
    for index in range(6)
  ]  # fmt: skip
  return {'images': images, 'annotations': annotations, 'categories': [{'id': 3, 'name': 'box'}], **changes}


def test_coco(own):
  for indent in (None, 2):
    file = own.root / 'instances.json'
    file.write_text(json.dumps(coco(own), indent=indent), encoding='utf-8-sig' if indent else 'utf-8')
    assert formats.format_of(file) == 'coco'
  assert prepare.main(own.arguments(file)) == 0
  texts = [TEXTS[index][:1] if index in (3, 4) else TEXTS[index] for index in range(6)]
  found = check(own, texts, nothing=('5.png',))
  assert [found[f'{index}.png'].object_id for index in range(6)] == [7, 8, 9, 10, 11, 12]
  assert found['0.png'].category == 'box'


def change(content, path, value):
  *parents, last = path
  for key in parents:
    content = content[key]
  content[last] = value


@pytest.mark.parametrize(
  'path, value, kind',
  [
    (('annotations', 0, 'image_id'), 99, problems.UNKNOWN_IMAGE),
    (('annotations', 0, 'image_id'), [], problems.UNKNOWN_IMAGE),
    (('annotations', 0, 'category_id'), 99, problems.UNKNOWN_CATEGORY),
    (('annotations', 0, 'sentences'), None, problems.NO_SENTENCE),
    (('annotations', 0, 'sentences'), [{'sent': 7}], problems.BAD_ENTRY),
    (('annotations', 0), 7, problems.BAD_ENTRY),
    (('images', 0, 'height'), 'high', problems.IMAGE_SIZE),
    (('images', 0, 'height'), float('nan'), problems.IMAGE_SIZE),
    (('images', 0, 'file_name'), None, problems.BAD_ENTRY),
  ],
)
def test_bad_annotations_are_counted(own, path, value, kind):
  content, file = coco(own), own.root / 'instances.json'
  change(content, path, value)
  file.write_text(json.dumps(content))
  found, entries = read(file, 'coco', own)
  assert found.counts == {kind: 1} and len(entries) == 5


@pytest.mark.parametrize(
  'key, index, changed, message',
  [
    ('images', 2, {'file_name': '5.png'}, 'images: id 52 twice, with file_name "2.png" and "5.png"'),
    ('images', 2, {'split': None}, 'images: id 52 twice, with split "train" and null'),
    ('categories', 0, {'name': 'mug'}, 'categories: id 3 twice, with name "box" and "mug"'),
  ],
)
def test_an_id_for_two_images_or_categories_of_coco_is_refused(own, key, index, changed, message):
  content, file = coco(own), own.root / 'instances.json'
  content[key].append(content[key][index] | {'license': 4})  # nothing that is read
  file.write_text(json.dumps(content))
  found, entries = read(file, 'coco', own)
  assert not found and len(entries) == 6
  content[key][-1] |= changed
  file.write_text(json.dumps(content))
  with pytest.raises(UserError) as error:
    read(file, 'coco', own)
  assert str(error.value) == f'{file}: {message}; remove one of them or give it another id'


def test_an_image_whose_size_differs_from_coco(own):
  content, file = coco(own), own.root / 'instances.json'
  content['images'][0]['height'] = 40
  file.write_text(json.dumps(content))
  said = []
  with pytest.raises(UserError, match=r'1 problem\)'):
    builder.prepare('mine', file, own.photos, own.root / 'data', processes=0, say=said.append)
  assert any(f'1 {problems.OTHER_SIZE}: 0.png (annotation 0) (64 x 48, not 64 x 40)' in line for line in said)


def test_sa2va(own):
  content = [
    {'image': f'{index}.png', 'mask': [polygon(own.masks[f'{index}.png'])], 'text': TEXTS[index][:1]}
    for index in range(6)
  ]
  content[0] |= {'mask': content[0]['mask'] * 2, 'text': ['box 0', 'again'], 'id': 'x'}
  file = own.root / 'annotations.json'
  file.write_text(json.dumps(content))
  assert formats.format_of(file) == 'sa2va'
  _, entries = read(file, 'sa2va', own)
  assert [(entry.texts, entry.id) for entry in entries[:3]] == [
    (('box 0',), 'x/0'),
    (('again',), 'x/1'),
    (('box 1',), None),
  ]
  assert prepare.main(own.arguments(file)) == 0
  sources = [datasets.open_split('mine', own.root / 'data', split) for split in ('train', 'val', 'test')]
  samples = [source[index] for source in sources for index in range(len(source))]
  assert len(samples) == 7
  for sample in samples:
    name = '0.png' if sample.expressions[0] == 'again' else f'{sample.expressions[0][-1]}.png'
    np.testing.assert_array_equal(sample.mask, own.masks[name])


@pytest.mark.parametrize(
  'item', [7, {}, {'image': 'a', 'mask': [], 'text': ['x']}, {'image': 'a', 'mask': 1, 'text': 2}]
)
def test_bad_items_are_counted(own, item):
  file = own.root / 'annotations.json'
  file.write_text(json.dumps([item]))
  found, entries = read(file, 'sa2va', own)
  assert found.counts == {problems.BAD_ENTRY: 1} and not entries


def test_a_folder_per_split(own):
  root = own.root / 'folders'
  for index in range(6):
    name = f'{index}.png'
    folder = root / SPLITS[index]
    folder.mkdir(parents=True, exist_ok=True)
    if index % 2:  # a PNG next to its mask
      (folder / f'{index}.png').write_bytes((own.photos / name).read_bytes())
      (folder / f'{index}.mask.png').write_bytes((own.root / 'masks' / name).read_bytes())
    else:
      (folder / f'{index}.jpg').write_bytes(jpeg(own.pixels[name]))
      (folder / f'{index}.png').write_bytes((own.root / 'masks' / name).read_bytes())
    (folder / f'{index}.txt').write_text('\n'.join([*TEXTS[index], '', '']))
  assert formats.format_of(root) == 'folder'
  assert prepare.main(['--name=mine', f'--annotations={root}', f'--data-dir={own.root / "data"}', '--processes=0']) == 0
  check(own, exact=False)


def test_the_data_set_may_be_written_into_the_folder_of_the_annotations(own, monkeypatch):
  for index, split in enumerate(('train', 'val')):
    (own.root / split).mkdir()
    shutil.copy(own.photos / f'{index}.png', own.root / split / '0.png')
    shutil.copy(own.root / 'masks' / f'{index}.png', own.root / split / '0.mask.png')
    (own.root / split / '0.txt').write_text('a box')
  monkeypatch.chdir(own.root)
  shutil.rmtree('photos')
  first, again = (builder.prepare('mine', '.', None, 'data', processes=0) for _ in range(2))
  assert first.seconds and again.seconds is None and again.splits == first.splits
  (own.root / 'val' / '0.txt').write_text('the box')
  with pytest.raises(UserError, match='prepared from other annotations'):
    builder.prepare('mine', '.', None, 'data', processes=0)


def test_subfolders_for_images_masks_and_texts(own):
  root = own.root / 'folders'
  for index in range(6):
    for part, source in (('images', own.photos), ('masks', own.root / 'masks')):
      folder = root / SPLITS[index] / part
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f'{index}.png').write_bytes((source / f'{index}.png').read_bytes())
    folder = root / SPLITS[index] / 'texts'
    folder.mkdir(exist_ok=True)
    (folder / f'{index}.txt').write_text('\n'.join(TEXTS[index]))
  arguments = ['--name=mine', f'--annotations={root}', f'--data-dir={own.root / "data"}', '--processes=0']
  assert prepare.main(arguments) == 0
  check(own)
  (root / 'train' / 'texts' / '1.txt').unlink()
  (root / 'train' / 'masks' / '2.png').unlink()
  found, entries = read(root, 'folder', own)
  assert found.counts == {problems.NO_SENTENCE: 1} and len(entries) == 5
  said = []
  with pytest.raises(UserError, match='2 problems'):
    builder.prepare('other', root, None, own.root / 'data', processes=0, say=said.append)
  assert any(line.startswith(f'1 {problems.MASK_FILE}: train/images/2.png: train/masks/2.png') for line in said)


def test_images_in_folders_may_have_all_endings_that_prediction_reads(own):
  folder = own.root / 'folders' / 'train'
  for part in ('images', 'masks', 'texts'):
    (folder / part).mkdir(parents=True)
  for ending in ('jfif', 'PGM', 'jpg'):
    (folder / 'images' / f'{ending}.{ending}').write_bytes(jpeg(own.pixels['0.png']))
    (folder / 'texts' / f'{ending}.txt').write_text('box')
  found, entries = read(folder.parent, 'folder', own)
  assert not found and len(entries) == 3


def test_a_file_per_split(own):
  folder = own.root / 'annotations'
  folder.mkdir()
  for split in ('train', 'val', 'test'):
    content = coco(own)
    content['annotations'] = [one for one in content['annotations'] if SPLITS[one['id'] - 7] == split]
    for number, annotation in enumerate(content['annotations']):
      annotation['id'] = number  # restarts in every file
    for image in content['images']:
      del image['split']
    (folder / f'instances_{split}2014.json').write_text(json.dumps(content))
  assert formats.format_of(folder) == 'coco'
  assert prepare.main(own.arguments(folder)) == 0
  check(own, [TEXTS[index][:1] if index in (3, 4) else TEXTS[index] for index in range(6)], nothing=('5.png',))
  listed = list(csv.DictReader((own.root / 'data' / 'mine' / 'objects.csv').open()))
  assert (listed[-1]['id'], listed[-1]['place']) == ('instances_test2014/0', 'instances_test2014.json annotation 0')
  own.write_lines([*rows(own), '{'], 'annotations/more_val.jsonl')
  with pytest.raises(
    UserError, match='files in several formats: instances_val2014.json .coco., more_val.jsonl .jsonl.'
  ):
    formats.format_of(folder)
  for file in folder.glob('*.json'):
    file.unlink()
  found = Problems()
  context = Context(folder, own.photos, own.root, found, lambda text: None)
  assert len(list(formats.read('jsonl', context))) == 6
  assert found.report() == [
    f'1 {problems.BAD_LINE}: more_val.jsonl line 7 (damaged or not JSON (Expecting property name enclosed in double '
    'quotes: character 2))'
  ]


# ------------------------------------------------------------------------------------------------------------ Parquet


def hub_rows(own, index):
  """Returns a row in the form of jxu124/refcoco and one in the form of lmms-lab/RefCOCO."""
  mask = own.masks[f'{index}.png']
  height, width = mask.shape
  sentences = [{'raw': text.upper(), 'sent': text, 'sent_id': 1, 'tokens': text.split()} for text in TEXTS[index]]
  annotation = {'segmentation': polygon(mask), 'iscrowd': 0, 'id': 5, 'area': 1.0}
  jxu = {
    'sent_ids': [1, 2],
    'ann_id': 5 + index,
    'ref_id': 70 + index,
    'split': SPLITS[index],
    'sentences': sentences,
    'raw_anns': json.dumps(annotation),
    'raw_image_info': json.dumps({'height': height, 'width': width, 'file_name': f'{index}.png'}),
    'image_path': f'coco/train2014/{index}.png',
    'bbox': [0.0] * 4,
    'captions': TEXTS[index],
  }
  lmms = {
    'question_id': f'{index}x',
    'image': {'bytes': (own.photos / f'{index}.png').read_bytes(), 'path': f'{index}.png'},
    'question': 'Please provide a short description for this region',
    'answer': TEXTS[index],
    'segmentation': polygon(mask)[0],
    'bbox': [0.0] * 4,
    'iscrowd': 0,
    'file_name': f'{index}.png',
  }
  return jxu, lmms


def test_parquet_with_paths(own, capsys):
  folder = own.root / 'hub'
  folder.mkdir()
  parquet.write_table(pa.Table.from_pylist([hub_rows(own, index)[0] for index in range(6)]), folder / 'all.parquet')
  assert formats.format_of(folder) == formats.format_of(folder / 'all.parquet') == 'parquet'
  assert prepare.main(own.arguments(folder)) == 0
  assert check(own)['3.png'].object_id == 73
  assert 'image paths: without coco/train2014/' in capsys.readouterr().err


@pytest.mark.parametrize('processes', [0, pytest.param(2, marks=pytest.mark.multiprocess)])
def test_parquet_with_the_images_inside(own, processes, capsys):
  folder = own.root / 'hub' / 'data'
  folder.mkdir(parents=True)
  lmms = [hub_rows(own, index)[1] for index in range(6)]
  twice = hub_rows(own, 4)[1] | {'question_id': 'again', 'answer': ['box again']}  # the same image again
  for name, some in (
    ('val-00000-of-00002', lmms[:3]),
    ('val-00001-of-00002', lmms[3:5]),
    ('testA-00000-of-00001', lmms[5:]),
  ):
    some = [*some, twice] if name.startswith('val-00001') else some
    parquet.write_table(pa.Table.from_pylist(some), folder / f'{name}.parquet', row_group_size=2)
  arguments = [one for one in own.arguments(folder.parent) if not one.startswith('--processes')]
  assert prepare.main([*arguments, f'--processes={processes}']) == 0
  out = capsys.readouterr().out
  assert "no split 'train', required for training; found: val, testA" in out
  source = datasets.open_split('mine', own.root / 'data', 'val')
  assert len(source) == 6 and source.num_images == 5  # the image shared by two rows is stored once
  for index in range(6):
    sample = source[index]
    name = '4.png' if sample.expressions == ('box again',) else f'{sample.expressions[0][-1]}.png'
    np.testing.assert_array_equal(sample.image, own.pixels[name])
    np.testing.assert_array_equal(sample.mask, own.masks[name])
  assert len(datasets.open_split('mine', own.root / 'data', 'testA')) == 1


def test_damaged_parquet_other_tables_and_missing_pyarrow_are_refused_in_one_line(own, monkeypatch):
  file = own.root / 'a.parquet'
  parquet.write_table(pa.Table.from_pylist([{'a': 1}]), file)
  with pytest.raises(UserError, match='has the columns a; expected images'):
    read(file, 'parquet', own)
  file.write_bytes(b'PAR1' + b'\0' * 100 + b'PAR1')
  with pytest.raises(UserError, match='is damaged or not Parquet'):
    read(file, 'parquet', own)
  monkeypatch.setitem(sys.modules, 'pyarrow', None)
  with pytest.raises(UserError, match=r"needs pyarrow; run pip install 'ditsam_jax\[parquet\]'"):
    read(file, 'parquet', own)


def test_bad_rows_are_counted(own):
  jxu, lmms = hub_rows(own, 0)
  for row, kind in (
    (jxu | {'raw_anns': '{'}, problems.BAD_ENTRY),
    (jxu | {'raw_anns': '[1]'}, problems.BAD_ENTRY),
    (jxu | {'raw_anns': None}, problems.NO_MASK),
    (jxu | {'raw_image_info': '{"height": -1, "width": 5}'}, problems.IMAGE_SIZE),
    (jxu | {'image_path': ''}, problems.BAD_ENTRY),
    (lmms | {'image': {'bytes': None, 'path': 'a'}}, problems.BAD_ENTRY),
    (lmms | {'iscrowd': 1}, problems.MALFORMED_MASK),
  ):
    file = own.root / 'a.parquet'
    good = jxu if 'ref_id' in row else lmms
    parquet.write_table(pa.Table.from_pylist([good, row]), file)
    found, entries = read(file, 'parquet', own)
    assert found.counts == {kind: 1} and len(entries) == 1


# ---------------------------------------------------------------------------------------------------------- detection


@pytest.mark.parametrize(
  'content',
  ['', 'image;text\n', 'hello\n', '\0\0\0', '<xml>'],
)
def test_files_in_no_known_format_are_refused_in_one_line(own, content):
  file = own.root / 'mine.txt'
  file.write_text(content)
  with pytest.raises(UserError, match='in none of the formats jsonl, csv, coco, sa2va, parquet, folder'):
    formats.format_of(file)


def test_json_lines_with_a_broken_first_line_are_still_detected(own):
  file = own.write_lines(['{"image": "a", }', {'image': 'a', 'text': 'b', 'mask': None}])
  assert formats.format_of(file) == 'jsonl'
  found, entries = read(file, 'jsonl', own)
  assert found.counts == {problems.BAD_LINE: 1} and len(entries) == 1


def test_tfds_opens_the_data_set(own):
  assert prepare.main(own.arguments(own.write_lines(rows(own)))) == 0
  source = tfds.data_source('mine', data_dir=str(own.root / 'data'), split='val')
  assert len(source) == 1
  np.testing.assert_array_equal(source[0]['image'], own.pixels['4.png'])
  np.testing.assert_array_equal(source[0]['objects']['mask'][0][..., 0] == 255, own.masks['4.png'])
