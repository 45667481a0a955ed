"""Text from files and arguments is escaped before it is printed, so it cannot forge lines of output."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditsam_jax import command_line
from ditsam_jax.terminal import aligned, listed, printable


@pytest.mark.slow
@given(st.text(st.characters(), max_size=50))  # includes surrogates, which file names may contain
def test_any_text_becomes_one_encodable_line(name):
  shown = printable(name)
  assert len(shown.splitlines()) <= 1 and not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
  shown.encode('utf-8')


@pytest.mark.parametrize(
  'name, shown',
  [
    ('photo.jpg', 'photo.jpg'),
    ('größer, 猫, 👩\u200d🚀', 'größer, 猫, 👩\u200d🚀'),
    ('w\nerror: pwned', r'w\nerror: pwned'),
    ('a\x1b[2Jb\rc', r'a\x1b[2Jb\rc'),
    ('gpj.\u202eexe', r'gpj.\u202eexe'),
    ('\udcff', r'\udcff'),
  ],
)
def test_only_characters_that_could_forge_output_are_escaped(name, shown):
  assert printable(name) == shown


def test_long_names_and_lists_are_truncated():
  assert printable('a' * 300 + 'z' * 300, longest=10) == 'aaaaa...zzzzz'
  assert len(printable('x' * 10**6)) < 300
  assert listed('abc') == 'a, b, c' and listed([]) == ''
  assert listed(f'tensor\n{i}' for i in range(1234)) == (
    r'tensor\n0, tensor\n1, tensor\n2, tensor\n3, tensor\n4 and 1,229 more'
  )
  assert listed('abcd', most=2) == 'a, b and 2 more'


def test_any_error_is_printed_as_one_line(capsys):
  with pytest.raises(SystemExit) as end:
    command_line.fail('file \x1b[31m: bad\n  in line 3')
  assert end.value.code == 2
  assert capsys.readouterr().err == 'error: file \\x1b[31m: bad in line 3\n'


def test_columns_are_aligned():
  rows = [['', 'images', 'masks'], ['train', '1,200', '7'], ['val', '80', '']]
  assert aligned(rows) == ['       images  masks', 'train   1,200      7', 'val        80']
  assert aligned(rows, left=3)[1:] == ['train  1,200   7', 'val    80']
  assert aligned([]) == []
