"""Prepares the official downloads: every format, every fault, the counts, and the command."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from ditsam_jax import prepare, terminal
from ditsam_jax.data import datasets
from ditsam_jax.data.preparation import problems, writer
from ditsam_jax.data.refcoco import builder, catalogue
from ditsam_jax.data.refcoco.catalogue import Counts
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.errors import UserError
from tests.data.refcoco_downloads import make, rectangle


@pytest.fixture
def downloads(tmp_path):
  return make(tmp_path).write()


@pytest.fixture(scope='module')
def prepared(tmp_path_factory):
  made = make(tmp_path_factory.mktemp('downloads')).write()
  data_dir = made.root / 'data'
  assert prepare.main(made.arguments(data_dir)) == 0
  return made, data_dir


def run_prepare(downloads, data_dir, **settings):
  """Calls the library; returns its result and its messages."""
  said = []
  done = builder.prepare(
    downloads.name,
    downloads.split_by,
    downloads.root / 'annotations',
    downloads.image_dir,
    data_dir,
    say=said.append,
    **settings,
  )
  return done, said


def nothing_written(data_dir):
  return not [path for path in data_dir.rglob('*') if path.is_file()]


def objects_of(data_dir, splits=('train', 'val', 'testA')):
  return {
    one.object_id: one
    for split in splits
    for one in (source[i] for source in [datasets.open_split('refcoco', data_dir, split)] for i in range(len(source)))
  }


# ------------------------------------------------------------------------------------------------------------ records


def test_every_ref_is_written_with_its_image_mask_and_sentences(prepared):
  made, data_dir = prepared
  found = objects_of(data_dir)
  assert list(found) == [ref['ref_id'] for ref in made.refs]
  categories = {1: 'person', 18: 'dog', 62: 'chair'}
  for ref in made.refs:
    sample = found[ref['ref_id']]
    annotation = next(one for one in made.annotations if one['id'] == ref['ann_id'])
    np.testing.assert_array_equal(sample.mask, made.masks[ref['ann_id']])
    assert sample.expressions == tuple(sentence['sent'] for sentence in ref['sentences'])
    assert sample.kinds == ('',) * len(sample.expressions)
    assert (sample.image_id, sample.category) == (ref['image_id'], categories[annotation['category_id']])
    assert sample.image.shape[:2] == sample.mask.shape


def test_grey_cmyk_and_rotated_jpegs_are_read_without_applying_exif_orientation(prepared):
  made, data_dir = prepared
  for sample in objects_of(data_dir).values():
    with Image.open(made.image_file(sample.image_id)) as picture:  # Pillow also ignores EXIF orientation
      theirs = np.asarray(picture.convert('RGB')).astype(int)
    # Decoders upsample chroma and convert CMYK differently.
    assert np.abs(sample.image - theirs).mean() < 3


def test_jpeg_bytes_are_unchanged_and_stored_once(prepared):
  made, data_dir = prepared
  source = datasets.open_split('refcoco', data_dir, 'train')
  assert source.num_images == 3 and len(source) == 12
  for index in range(3):
    record = source.image(index)
    stored = record._features['image'].bytes_list.value
    assert list(stored) == [made.image_file(record.image_id).read_bytes()]


def test_tfds_opens_the_data_set(prepared):
  made, data_dir = prepared
  source = tfds.data_source('refcoco/unc', data_dir=str(data_dir), split='val')
  assert len(source) == 1 and source[0]['image_id'] == 581003
  theirs = np.stack(source[0]['objects']['mask'])[..., 0] == 255
  np.testing.assert_array_equal(theirs, [made.masks[ref['ann_id']] for ref in made.refs if ref['split'] == 'val'])


def test_the_folder_of_the_data_set_is_accepted_and_wrong_folders_are_named(downloads, tmp_path):
  arguments = dict(dataset='refcoco', split_by='unc', images_dir=downloads.root, data_dir=tmp_path / 'data')
  with pytest.raises(UserError, match=r'no refs\(google\)\.p.*refs\(unc\)\.p'):
    builder.prepare(**arguments | {'split_by': 'google'}, annotations_dir=downloads.folder)
  with pytest.raises(UserError, match='nowhere is not a folder'):
    builder.prepare(**arguments, annotations_dir=tmp_path / 'nowhere')
  with pytest.raises(UserError, match='--images=.*nowhere is not a folder'):
    builder.prepare(**arguments | {'images_dir': tmp_path / 'nowhere'}, annotations_dir=downloads.folder)
  with pytest.raises(UserError, match=r'is the folder of refcoco, not of refcoco\+'):
    builder.prepare(**arguments | {'dataset': 'refcoco+'}, annotations_dir=downloads.folder)
  done = builder.prepare(**arguments, annotations_dir=downloads.folder)  # images: the parent of train2014
  assert done.whole.images == 5


def test_records_do_not_depend_on_worker_processes_or_shards(prepared, downloads, monkeypatch):
  made, data_dir = prepared
  monkeypatch.setattr(writer, '_SHARD', 2)
  done, _ = run_prepare(downloads, downloads.root / 'data', processes=2)
  assert len(list(done.directory.glob('refcoco-train*'))) == 2
  for split in ('train', 'val', 'testA'):
    records = [
      [source.image(i)._features for i in range(source.num_images)]
      for source in (datasets.open_split('refcoco', folder, split) for folder in (data_dir, downloads.root / 'data'))
    ]
    assert records[0] == records[1]


def test_grefcoco_has_unions_and_empty_masks(tmp_path):
  made = make(tmp_path, 'grefcoco')
  made.refs.clear()
  for ref_id, ann_id, texts in ((1, [1], ['box']), (2, [1, 4], ['both', 'all']), (3, [-1], ['a ghost', 'x', 'y'])):
    made.add_ref(ref_id, 581000, ann_id, 'testB', texts)
  made.write()
  done, _ = run_prepare(made, tmp_path / 'data')
  assert done.whole == Counts(1, 3, 6, multi_target=2, no_target=3)
  source = datasets.open_split('grefcoco', tmp_path / 'data', 'testB')
  for sample, mask in zip((source[i] for i in range(3)), (made.masks[1], made.masks[1] | made.masks[4], 0)):
    np.testing.assert_array_equal(sample.mask, np.broadcast_to(mask, sample.mask.shape))
  assert [source[i].category for i in range(3)] == ['person', 'person, chair', '']


# ------------------------------------------------------------------------------------------------------------- counts


def test_the_command_prints_counts_and_missing_data(downloads, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(terminal._Lines, 'INTERVAL', -1)
  assert prepare.main(downloads.arguments(tmp_path / 'data')) == 0
  out, err = capsys.readouterr()
  rows = [line.split() for line in out.splitlines()]
  assert rows[:5] == [
    ['split', 'images', 'objects', 'expressions'],
    ['train', '3', '12', '18'],
    ['val', '1', '4', '6'],
    ['testA', '1', '4', '6'],
    ['all', '5', '20', '30'],
  ]
  assert 'incomplete' in out and 'testB: 0 of 750 images' in out and 'total: 30 of 142,209 expressions' in out
  assert 'images/s' in out and 'masks/s' in out and err.splitlines()[-1] == 'preparing: 5 of 5 images'
  assert prepare.main(downloads.arguments(tmp_path / 'data')) == 0  # again: the same counts, read from the data set
  again, err = capsys.readouterr()
  assert 'unchanged: ' in again and 'written' not in again and again.splitlines()[:5] == out.splitlines()[:5]


@pytest.mark.parametrize('name', catalogue.FAMILY)
def test_published_sizes_are_complete_and_one_less_is_not(name):
  for partition in catalogue.FAMILY[name].partitions:
    split_by = partition.name
    splits = {split: Counts(*(sizes or (1, 1))) for split, sizes in partition.splits.items()}
    whole = catalogue.FAMILY[name].whole
    assert catalogue.compare(name, split_by, splits, whole) == []
    assert catalogue.compare(name, split_by, splits, whole._replace(expressions=whole.expressions - 1))
    assert catalogue.compare(name, split_by, splits | {'val': Counts()}, whole)
    if whole.objects:
      assert sum(counts.objects for counts in splits.values()) == whole.objects


def test_the_released_part_of_grefcoco_is_complete_and_otherwise_its_size_is_noted():
  splits = {split: Counts(1, 1) for split in catalogue.FAMILY['grefcoco'].partition().splits}
  released = Counts(19_994, 60_000, 259_859, 70_000, 30_000)
  assert catalogue.compare('grefcoco', 'unc', splits, released) == []
  *different, note = catalogue.compare('grefcoco', 'unc', splits, released._replace(expressions=259_858))
  assert different == [
    'total: 259,858 of 278,232 expressions',
    'total: 70,000 of 80,022 multi-target expressions',
    'total: 30,000 of 32,202 no-target expressions',
  ]
  assert '259,859' in note


def test_an_image_in_two_splits_counts_once(tmp_path):
  made = make(tmp_path, 'refcocog', 'google')
  for ref in made.refs:
    ref['split'] = 'train' if ref['ref_id'] % 2 else 'val'
  done, _ = run_prepare(made.write(), tmp_path / 'data')
  assert done.splits['train'].images == done.splits['val'].images == done.whole.images == 5
  assert len(datasets.open_split('refcocog/google', tmp_path / 'data', 'val')) == 10


# ------------------------------------------------------------------------------------------------------------- faults


def break_file(made):
  made.image_file(581000).unlink()
  return problems.MISSING_FILE, 'COCO_train2014_000000581000.jpg', 4


def cut_file(made):
  file = made.image_file(581000)
  file.write_bytes(file.read_bytes()[:-300])
  return problems.NO_JPEG, 'COCO_train2014_000000581000.jpg (', 4


def other_format(made):
  Image.new('RGB', (64, 48)).save(made.image_file(581000), format='PNG')
  return problems.NO_JPEG, 'no JPEG', 4


def empty_file(made):
  made.image_file(581000).write_bytes(b'')
  return problems.NO_JPEG, 'no JPEG', 4


def resized(made):
  Image.new('RGB', (32, 24)).save(made.image_file(581000))
  return problems.OTHER_SIZE, '32 x 24, not 64 x 48', 4


def unknown_image(made):
  made.images[:] = made.images[1:]
  return problems.UNKNOWN_IMAGE, 'ref 101 (image 581000)', 4


def unknown_annotation(made):
  made.annotations[:] = made.annotations[1:]
  return problems.UNKNOWN_ANNOTATION, 'ref 101 (annotation 1)', 1


def other_image(made):
  made.annotations[0]['image_id'] = 581001
  return problems.OTHER_IMAGE, 'ref 101 (annotation 1)', 1


def unknown_category(made):
  made.annotations[0]['category_id'] = 99
  return problems.UNKNOWN_CATEGORY, 'category 99', 1


def unknown_split(made):
  made.refs[0]['split'] = 'minival'
  return problems.UNKNOWN_SPLIT, "'minival'", 1


def no_mask(made):
  del made.annotations[0]['segmentation']
  return problems.NO_MASK, 'annotation 1 of ref 101', 1


def malformed_mask(made):
  made.annotations[0]['segmentation'] = {'size': [48, 64], 'counts': [1, 2]}
  return problems.MALFORMED_MASK, 'annotation 1 of ref 101', 1


def large_mask(made):
  made.annotations[0]['segmentation'] = [rectangle(48, 64, 10, 10, 90, 120)[0]]
  return problems.LARGE_MASK, 'annotation 1 of ref 101', 1


@pytest.mark.parametrize(
  'fault',
  [
    break_file,
    cut_file,
    other_format,
    empty_file,
    resized,
    unknown_image,
    unknown_annotation,
    other_image,
    unknown_category,
    unknown_split,
    no_mask,
    malformed_mask,
    large_mask,
  ],
  ids=lambda fault: fault.__name__,
)
def test_a_fault_is_named_and_refused_or_skipped(downloads, tmp_path, fault):
  kind, example, refs = fault(downloads)
  downloads.write()
  said = []
  with pytest.raises(UserError, match='nothing was written.*--skip-bad'):
    builder.prepare('refcoco', 'unc', downloads.folder, downloads.image_dir, tmp_path / 'data', say=said.append)
  assert [line for line in said if kind in line and example in line]
  assert nothing_written(tmp_path / 'data')
  done, said = run_prepare(downloads, tmp_path / 'data', skip_bad=True)
  assert done.left_out[kind] in (1, refs) and done.whole.objects == 20 - refs
  assert [line for line in said if line.startswith('skipped: ') and example in line]
  left = {ref['ref_id'] for ref in downloads.refs[:refs]}
  assert set(objects_of(tmp_path / 'data')) == {ref['ref_id'] for ref in downloads.refs} - left


def test_all_faults_are_reported_with_counts_and_first_examples(downloads, tmp_path, capsys):
  for ref in downloads.refs[:6]:
    ref['ann_id'] += 9000
  no_mask_of = downloads.annotations[8]
  no_mask_of['segmentation'] = []
  downloads.image_file(581004).unlink()
  downloads.write()
  with pytest.raises(UserError, match=r'8 problems'):
    prepare.main(downloads.arguments(tmp_path / 'data'))
  lines = capsys.readouterr().err.replace('\r', '\n').splitlines()
  assert (
    f'6 {problems.UNKNOWN_ANNOTATION}: ref 101 (annotation 9001), ref 102 (annotation 9002), '
    'ref 103 (annotation 9003), ...' in lines
  )
  assert f'1 {problems.MISSING_FILE}: COCO_train2014_000000581004.jpg (image 581004)' in lines
  assert any(line.startswith(f'1 {problems.NO_MASK}: annotation 21 of ref 121') for line in lines)


def test_bad_images_at_the_end_of_a_full_shard_are_detected(downloads, tmp_path, monkeypatch):
  monkeypatch.setattr(writer, '_SHARD', 1)
  for ref in downloads.refs:
    ref['split'] = 'train'
  cut = downloads.image_file(581004)
  cut.write_bytes(cut.read_bytes()[:-300])
  downloads.write()
  with pytest.raises(UserError, match=r'1 problem\)'):
    run_prepare(downloads, tmp_path / 'data')
  assert nothing_written(tmp_path / 'data')
  done, _ = run_prepare(downloads, tmp_path / 'data', skip_bad=True)
  source = ReferringSource(done.directory, 'train')  # its last shard is empty
  assert [source.image(i).image_id for i in range(source.num_images)] == [581000, 581001, 581002, 581003]
  assert source[15].mask.any()


def test_a_bad_mask_in_a_full_shard_is_detected(downloads, tmp_path, monkeypatch):
  monkeypatch.setattr(writer, '_SHARD', 1)
  downloads.annotations[-1]['segmentation'] = []
  downloads.write()
  with pytest.raises(UserError, match=r'1 problem\)'):
    run_prepare(downloads, tmp_path / 'data')
  assert nothing_written(tmp_path / 'data')


def test_data_without_usable_images_is_refused(downloads, tmp_path):
  with pytest.raises(UserError, match='no image has'):
    builder.prepare('refcoco', 'unc', downloads.folder, downloads.folder, tmp_path / 'data', skip_bad=True)
  downloads.image_file(581003).write_bytes(b'')
  with pytest.raises(UserError, match='no usable image in val'):
    run_prepare(downloads, tmp_path / 'data', skip_bad=True)
  assert nothing_written(tmp_path / 'data')


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--dataset=refclef'], 'refclef'),
    (['--dataset=refcocog', '--split-by=unc'], 'umd or google'),
    (['--dataset=refcoco', '--processes=-1'], '--processes=-1'),
  ],
)
def test_bad_flags_are_named(flags, message):
  with pytest.raises(UserError, match=message):
    prepare.main([*flags, '--annotations=a', '--images=b'])


def test_a_data_folder_that_is_a_file_is_reported(downloads, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='data folder'):
    run_prepare(downloads, tmp_path / 'file')
