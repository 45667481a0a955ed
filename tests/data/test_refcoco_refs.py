"""Refs are read as pickled by Python 2 and 3; pickles can contain only plain data."""

import collections
import json
import os
import pickle

import numpy as np
import pytest

from ditsam_jax.data.refcoco.refs import Ref, read_pickle, read_refs, refs_file
from ditsam_jax.errors import UserError
from tests.data.refcoco_downloads import as_python_2

ITEMS = [
  {
    'ref_id': 7,
    'ann_id': 1719310,
    'image_id': 581857,
    'category_id': 1,
    'split': 'testA',
    'sent_ids': [0, 1],
    'file_name': 'COCO_train2014_000000581857_16.jpg',
    'sentences': [
      {'sent_id': 0, 'sent': 'caf\xe9 on the left', 'raw': 'CAF\xc9', 'tokens': ['caf\xe9']},
      {'sent_id': 1, 'sent': 'blue shirt', 'raw': 'blue', 'tokens': ['blue', 'shirt']},
    ],
  }
]
REF = Ref(7, 581857, (1719310,), 'testA', ('caf\xe9 on the left', 'blue shirt'))


@pytest.fixture
def file(tmp_path):
  return tmp_path / 'refs(unc).p'


@pytest.mark.parametrize(
  'data',
  [
    as_python_2(ITEMS, 0),
    as_python_2(ITEMS, 2),
    *[pickle.dumps(ITEMS, protocol) for protocol in range(6)],
  ],
  ids=['python 2, 0', 'python 2, 2', *[f'python 3, {protocol}' for protocol in range(6)]],
)
def test_every_protocol_of_both_pythons(file, data):
  file.write_bytes(data)
  assert read_refs(file) == [REF]


@pytest.mark.parametrize('value', [b'bytes', {1, 2}, frozenset('ab'), (1, 2.5, None, True), 2**70, {'a': [b'\xff']}])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_plain_values_are_read(file, value, protocol):
  file.write_bytes(pickle.dumps(value, protocol))
  assert read_pickle(file) == value


class _RunsCode:
  def __init__(self, function, *arguments):
    self.reduced = function, arguments

  def __reduce__(self):
    return self.reduced


@pytest.mark.parametrize('protocol', range(6))
@pytest.mark.parametrize(
  'value, named',
  [
    (lambda mark: _RunsCode(os.system, f'touch {mark}'), 'system'),
    (lambda mark: [{'ref_id': _RunsCode(eval, f'open({str(mark)!r}, "w")')}], 'eval'),
    (lambda mark: _RunsCode(getattr, str(mark), 'join'), 'getattr'),
    (lambda mark: collections.OrderedDict(a=1), 'OrderedDict'),
    (lambda mark: np.int64(3), 'numpy'),
  ],
)
def test_objects_that_could_run_code_are_refused_by_name_and_do_not_run(file, tmp_path, value, named, protocol):
  mark = tmp_path / 'mark'
  file.write_bytes(pickle.dumps(value(mark), protocol))
  with pytest.raises(UserError, match=rf'^refs\(unc\)\.p asks for \S*{named}\S*.*may run code') as error:
    read_refs(file)
  assert '\n' not in str(error.value)
  assert not mark.exists()


@pytest.mark.parametrize(
  'data',
  [
    b"cos\nsystem\n(S'true'\ntR.",
    b"cposix\nsystem\n(S'true'\ntR.",
    b"(S'true'\nios\nsystem\n.",
    b'\x80\x02cbuiltins\nset\nc__builtin__\neval\n\x86R.',
    b'\x80\x04\x8c\x02os\x8c\x06system\x93)R.',
  ],
)
def test_hand_written_pickles_that_could_run_code_are_refused(file, data):
  file.write_bytes(data)
  with pytest.raises(UserError, match=r'asks for (os\.system|posix\.system|__builtin__\.eval|builtins\.eval), which'):
    read_refs(file)


def test_codecs_other_than_latin_1_are_refused(file):
  file.write_bytes(b'\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.')
  with pytest.raises(UserError, match='rot13'):
    read_pickle(file)


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'\x80\x02',
    b'not a pickle',
    pickle.dumps(ITEMS, 2)[:-40],
    b'\x80\x02Pabc\n.',
    b'\x80\x02r\xff\xff\xff\x7f.',
    b'\x82\x01.',
  ],
)
def test_damaged_pickles_are_named(file, data):
  file.write_bytes(data)
  with pytest.raises(UserError, match=r'refs\(unc\)\.p (is damaged|asks for the external)'):
    read_refs(file)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'ref_id': '7'}, 'whole number'),
    ({'image_id': None}, 'None'),
    ({'sentences': [{'raw': 'x'}]}, "no 'sent'"),
    ({'split': 3}, 'not text'),
    ({'ann_id': [1.5]}, '1.5'),
    ({'sentences': 4}, 'not iterable'),
  ],
)
def test_malformed_refs_are_named_with_their_index(file, change, message):
  file.write_bytes(pickle.dumps([ITEMS[0], ITEMS[0] | change]))
  with pytest.raises(UserError, match='ref 1 differs from the official format') as error:
    read_refs(file)
  assert message in str(error.value)


def test_json_refs_may_have_no_target_or_several(tmp_path):
  file = tmp_path / 'grefs(unc).json'
  file.write_text(json.dumps([ITEMS[0] | {'ann_id': ids} for ids in ([-1], [3], [3, 4])]))
  assert [ref.annotation_ids for ref in read_refs(file)] == [(), (3,), (3, 4)]
  assert refs_file(tmp_path, 'unc') == file


def test_files_without_a_list_of_refs_are_named(tmp_path):
  for content in ('{}', '[]', '[', '[[[[', 'null'):
    file = tmp_path / 'grefs(unc).json'
    file.write_text(content)
    with pytest.raises(UserError, match=r'grefs\(unc\)\.json'):
      read_refs(file)
  with pytest.raises(UserError, match=r'refs\(umd\)\.p.*there: grefs\(unc\)\.json'):
    refs_file(tmp_path, 'umd')
