"""Any value of a field is accepted or refused in one line."""

import dataclasses
import math

import pytest

from ditsam_jax import fields
from ditsam_jax.config import recipe
from ditsam_jax.config.checks import check_fields, plain
from ditsam_jax.config.run import RunConfig
from ditsam_jax.errors import UserError
from ditsam_jax.fields import Choice, Flag, OrNone, Real, Several, Text, Whole, declared, group


class Hostile:
  """Cannot be printed or compared."""

  def __repr__(self):
    raise RuntimeError

  def __eq__(self, other):
    raise RuntimeError

  __hash__ = None


JUNK = [None, True, -1, 0, 3, 10**400, -0.5, math.nan, math.inf, 1e300, '', 'x', 'a\nb', '\0', 'y' * 10_000, b'x']
JUNK += [(), [None], [[1]], [math.nan] * 3, {}, {'width': 1}, {1: 2}, {'x': {}}, print, Hostile(), range(3), 1j]


@pytest.mark.slow
@pytest.mark.parametrize('path', [path for path, _ in fields.walk(RunConfig)])
def test_junk_is_accepted_or_refused_in_one_line(path):
  *parents, name = path.split('.')
  refused = 0
  for junk in JUNK:
    config = plain(recipe('shapes'))
    node = config
    for parent in parents:
      node = node[parent]
    node[name] = junk
    try:
      check_fields(config)
    except UserError as error:
      message = str(error)
      assert '\n' not in message and len(message) < 1200, message
      refused += 1
  assert refused > len(JUNK) // 2


@dataclasses.dataclass(frozen=True)
class Inner:
  """An example."""

  size: int = declared(3, Whole(1, 9, also=(-1,)), 'A size')
  share: float = declared(0.5, Real(0, 1, below=True), 'A share')


@dataclasses.dataclass(frozen=True)
class Outer:
  """An example."""

  inner: Inner | None = group(Inner(), 'A group', none='nothing')
  sizes: tuple[int, ...] = declared((1, 2), Several(Whole(0, 5), 1, 3), 'Sizes')
  steps: int | None = declared(None, OrNone(Whole(1, 5), 'as many as there are'), 'Steps')
  kind: str = declared('red', Choice(('red', 'green', 'blue')), 'A kind')
  name: str = declared('', Text(), 'A name')
  deep: bool = declared(False, Flag(), 'Whether it is deep')


def test_values_are_converted_to_the_declared_types():
  read = fields.read(Outer, {'inner': {'share': 0}, 'sizes': [3], 'steps': 4}, 'it')
  assert read == Outer(Inner(share=0.0), (3,), 4) and type(read.inner.share) is float
  assert fields.read(Outer, {'inner': None}, 'it').inner is None


@pytest.mark.parametrize(
  'values, expected',
  [
    ({'inner': {'size': 10}}, 'it.inner.size is 10; expected a whole number from 1 to 9, or -1'),
    ({'inner': {'share': 1}}, 'it.inner.share is 1; expected a number from 0 to below 1'),
    ({'inner': 3}, 'it.inner is 3; expected a group of fields (size, share)'),
    ({'inner': {'sise': 3}}, "it.inner has no field 'sise'; did you mean 'size'? it has: size, share"),
    ({'sizes': []}, 'it.sizes is []; expected a list of 1 to 3, each a whole number from 0 to 5'),
    ({'steps': 0}, 'it.steps is 0; expected a whole number from 1 to 5, or None (as many as there are)'),
    ({'kind': 'gren'}, "it.kind is 'gren'; did you mean 'green'? expected one of red, green, blue"),
    ({'name': 'a\tb'}, "it.name is 'a\\tb'; expected text of at most 4,096 characters, on one line"),
    ({'deep': 1}, 'it.deep is 1; expected True or False'),
    ({'deep': 'y' * 200}, f"it.deep is '{'y' * 79}...; expected True or False"),
  ],
)
def test_refusals(values, expected):
  with pytest.raises(ValueError) as error:
    fields.read(Outer, values, 'it')
  assert str(error.value) == expected


def test_missing_fields_are_refused_if_complete():
  with pytest.raises(ValueError, match='it.sizes is missing; expected a list of 1 to 3'):
    fields.read(Outer, {'inner': None}, 'it', complete=True)


def test_instances_are_checked_too():
  with pytest.raises(ValueError, match='it.inner.size is 0; expected'):
    fields.check(Outer(Inner(size=0)), 'it')
  with pytest.raises(ValueError, match='it.inner is 5; expected an instance of Inner'):
    fields.check(Outer(5), 'it')
