"""Names from files cannot forge lines, and long lists are cut."""

from ditsam_jax.terminal import listed, printable


def test_control_characters_and_surrogates_are_escaped_and_other_scripts_are_not():
  assert printable('a\nerror: pwned\x1b[31m\u2028\ud800') == 'a\\nerror: pwned\\x1b[31m\\u2028\\ud800'
  assert printable('caf\xe9 \u65e5\u672c') == 'caf\xe9 \u65e5\u672c'
  assert len(printable('x' * 10**6)) < 200


def test_long_lists_are_cut_with_a_count():
  assert listed('abc') == 'a, b, c'
  assert listed(range(12)) == '0, 1, 2, 3, 4 and 7 more'
  assert listed(['a\n', 'b'], most=1) == 'a\\n and 1 more'
