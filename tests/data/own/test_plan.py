"""Which paths, ids and splits of entries are accepted and which are refused."""

import os
import re

import pytest

from ditsam_jax.data import datasets
from ditsam_jax.data.own.entries import Context, Entry, Rejected
from ditsam_jax.data.own.plan import below, plan
from ditsam_jax.data.own.rows import LONGEST_LINE, read_json_lines
from ditsam_jax.data.preparation import problems
from ditsam_jax.data.preparation.problems import Problems
from ditsam_jax.errors import UserError
from ditsam_jax.limits import MAX_OBJECTS


@pytest.fixture
def context(tmp_path):
  (tmp_path / 'photos').mkdir()
  return Context(tmp_path / 'mine.jsonl', tmp_path / 'photos', tmp_path, Problems(), lambda text: None)


def entry(number, image='a.png', **more):
  return Entry(**{'place': f'line {number}', 'image': image, 'texts': ('a box',), 'mask': None, **more})


def lines(context, *rows):
  context.annotations.write_bytes(b'\n'.join(row if isinstance(row, bytes) else row.encode() for row in rows))
  entries = list(read_json_lines(context))
  assert all(line.isprintable() for line in context.found.report())
  return entries


GOOD = '{"image": "a.png", "text": "x", "mask": null}'


@pytest.mark.parametrize(
  'line, kind, message',
  [
    ('{"image": "a.png"', problems.BAD_LINE, 'not JSON .*character 18'),
    ('7', problems.BAD_ENTRY, '7; expected an object'),
    ('{"image": "a.png", "text": "x"}', problems.BAD_ENTRY, "no 'mask'"),
    ('{"image": "a", "image": "b", "text": "x", "mask": null}', problems.BAD_LINE, "key 'image' twice"),
    ('{"image": "a", "text": "x", "mask": [[NaN, 1]]}', problems.BAD_LINE, 'NaN is not a number'),
    ('{"image": "a", "text": "x", "mask": [[1e999, 1]]}', problems.BAD_LINE, 'too large'),
    ('{"image": "a", "text": "\\ud800", "mask": null}', problems.BAD_LINE, 'Unicode'),
    ('[' * 100_000, problems.BAD_LINE, 'nested too deeply'),
    ('{"a":' * 100_000, problems.BAD_LINE, 'nested too deeply'),
    ('9' * 5000, problems.BAD_LINE, '.'),
    (b'\xff\xfe', problems.BAD_LINE, 'not UTF-8'),
    ('x' * (LONGEST_LINE + 1), problems.BAD_LINE, 'longer than'),
    ('{"image": 1, "text": "x", "mask": null}', problems.BAD_ENTRY, "'image' is 1, expected the path"),
    ('{"image": "a", "text": [1], "mask": null}', problems.BAD_ENTRY, 'expected a sentence or a list'),
    ('{"image": "a", "text": null, "mask": null}', problems.BAD_ENTRY, "'text' is null"),
    ('{"image": "a", "text": "x", "mask": 1}', problems.BAD_ENTRY, "'mask' is 1, expected a PNG's path"),
    ('{"image": "a", "text": "x", "mask": null, "split": 1}', problems.BAD_SPLIT, "'split' is 1"),
    ('{"image": "a", "text": "x", "mask": null, "id": 1.5}', problems.BAD_ENTRY, "'id' is 1.5"),
    ('{"image": "a", "text": "x", "mask": null, "category": []}', problems.BAD_ENTRY, "'category' is"),
  ],
)
def test_a_bad_line_is_reported_with_its_number_and_later_lines_are_read(context, line, kind, message):
  entries = lines(context, GOOD, line, GOOD)
  assert [one.place for one in entries] == ['line 1', 'line 3']
  assert context.found.counts == {kind: 1}
  assert any(line.startswith(f'1 {kind}: line 2 (') for line in context.found.report())
  assert re.search(message, context.found.report()[0])


def test_unknown_fields_are_counted(context):
  lines(context, GOOD, '{"image": "a.png", "text": "x", "mask": null, "splt": "val"}')
  assert context.ignored == {'splt': 1}


# -------------------------------------------------------------------------------------------------------------- paths


@pytest.mark.parametrize(
  'given',
  [
    '../a.png', 'b/../../a.png', 'b/../a.png', '/etc/passwd', '/dev/zero', 'https://host/a.png', 'gs://b/a',
    'file:///a', 'a\0b', 'a\nb', '\x1b[31m', 'C:\\a.png', 'b\\..\\a', 'x' * 300, '\udcff', '..', '.',
  ],
)  # fmt: skip
def test_paths_outside_the_folder_are_refused(tmp_path, given):
  with pytest.raises(Rejected) as error:
    below(tmp_path, given, 'image')
  assert error.value.kind == problems.BAD_PATH and str(error.value).isprintable()


@pytest.mark.parametrize('given', ['a.png', 'b/c/a.png', './a.png', 'b//a.png', '猫 1.png'])
def test_paths_below_the_folder_are_accepted(tmp_path, given):
  assert below(tmp_path, given, 'image') == os.path.normpath(tmp_path / given)
  assert below(tmp_path, str(tmp_path / given), 'image') == os.path.normpath(tmp_path / given)


def test_two_spellings_of_a_path_are_one_image(context):
  planned = plan([entry(1, 'a.png', split='val'), entry(2, './a.png', split='val')], context)
  assert [len(image.objects) for image in planned.images['val']] == [2]


def test_hints_name_the_folders_where_images_and_masks_are_found(context):
  said = []
  context.say = said.append
  for name in ('a.png', 'mask.png'):
    (context.images_dir / name).touch()
  home = context.annotations.parent
  plan([entry(1, 'photos/a.png', mask='mask.png'), entry(2, 'photos/b.png', mask='photos/mask.png')], context)
  assert said == [
    f"hint: 'photos/a.png' is not in {home / 'photos'} but in {home}; use --images={home}",
    f"hint: 'mask.png' is not in {home} but in {home / 'photos'}; use --masks={home / 'photos'}",
  ]


# ---------------------------------------------------------------------------------------------------------------- ids


def test_integer_ids_are_kept_and_other_objects_get_free_ones(context):
  planned = plan([entry(1, id=1), entry(2), entry(3), entry(4, id='x'), entry(5, id=0), entry(6, id=-4)], context)
  ids = [one.object_id for one in planned.images['train'][0].objects]
  assert ids[0] == 1 and ids[-1] == -4 and len(set(ids)) == 6
  assert [planned.names[number].id for number in ids] == ['1', '', '', 'x', '0', '-4']


def test_repeated_ids_and_objects_beyond_the_limit_are_counted(context):
  plan([entry(1, id='x'), entry(2, id='x'), entry(3, id=7), entry(4, id=7)], context)
  assert context.found.counts == {problems.REPEATED_ID: 2}
  plan([entry(number) for number in range(MAX_OBJECTS + 2)], context)
  assert context.found.counts[problems.MANY_OBJECTS] == 2


@pytest.mark.parametrize(
  'name',
  ['Mine', 'a/b', '', '1a', 'ä', 'a b', 'x' * 62, '../a', 'ref_coco', 'a\n', 'refcoco_plus', *datasets.NAMES],
)
def test_invalid_data_set_names_are_refused(name):
  with pytest.raises(UserError, match='--name=') as error:
    datasets.check_own_name(name)
  assert str(error.value).isprintable()


# ------------------------------------------------------------------------------------------------------------- splits


def test_split_names_are_kept_and_validation_becomes_val(context):
  planned = plan(
    [entry(1, split='testA'), entry(2, 'b.png', split='validation'), entry(3, 'c.png', split='train')], context
  )
  assert list(planned.images) == ['train', 'val', 'testA'] and not planned.split_here


@pytest.mark.parametrize('split', ['a b', '1', 'all', 'a/b', '../x', 'x' * 40, 'ä'])
def test_invalid_splits_are_counted(context, split):
  plan([entry(1, split=split)], context)
  assert context.found.counts == {problems.BAD_SPLIT: 1}


def test_entries_without_a_split_among_others_with_one_are_problems(context):
  planned = plan([entry(1, split='val'), *(entry(number) for number in range(2, 7))], context)
  assert context.found.counts == {problems.BAD_SPLIT: 5} and list(planned.images) == ['val']


def splits_of(context, names, seed=0):
  planned = plan([entry(number, name) for number, name in enumerate(names)], context, seed=seed)
  return {os.path.basename(image.source.place): split for split, some in planned.images.items() for image in some}


def test_random_splits_depend_only_on_seed_and_content(context):
  names = [f'{number}.png' for number in range(50)]
  for name in names:
    (context.images_dir / name).write_bytes(name.encode())
  first = splits_of(context, [*names, *names])  # two objects per image
  assert first == splits_of(context, names[::-1]) != splits_of(context, names, seed=1)
  sizes = {split: list(first.values()).count(split) for split in first.values()}
  assert sizes == {'train': 40, 'val': 5, 'test': 5}
  for name in names:  # renaming does not change the splits
    (context.images_dir / name).rename(context.images_dir / f'new {name}')
  assert splits_of(context, [f'new {name}' for name in names]) == {
    f'new {name}': split for name, split in first.items()
  }


def test_copies_of_a_file_are_in_the_same_split(context):
  names = [f'{number}.png' for number in range(30)]
  for number, name in enumerate(names):
    (context.images_dir / name).write_bytes(bytes([number % 10]))
  for seed in range(5):
    found = splits_of(context, names, seed)
    assert set(found.values()) == {'train', 'val', 'test'}
    assert all(found[name] == found[f'{number % 10}.png'] for number, name in enumerate(names))


@pytest.mark.parametrize('number, splits', [(1, ['train']), (2, ['train']), (3, ['train', 'val', 'test'])])
def test_fewer_than_three_images_are_all_train(context, number, splits):
  planned = plan([entry(index, f'{index}.png') for index in range(number)], context)
  assert list(planned.images) == splits
