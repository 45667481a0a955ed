"""Config fields, declared once: default, kind of value, and meaning.

A config is a dataclass whose fields are created by `declared` and `group`. Validation and messages (`read`, `check`),
command-line changes (`find`) and docs/config.md are derived from the declarations.
"""

import ast
import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from ditsam_jax.errors import UserError

_LONGEST = 4096  # characters per text
_SHOWN = 80  # characters of a value in a message
LARGEST = 1e30  # limit of all numbers; far above sensible values, and below float32's maximum


class Kind:
  """The kind of values that a field accepts."""

  @property
  def python(self) -> type:
    """The Python type of its values, for placeholders in a ConfigDict."""
    return str

  @property
  def expected(self) -> str:
    """The accepted values as an English phrase."""
    raise NotImplementedError

  def accepts(self, value: Any) -> bool:
    raise NotImplementedError

  def normal(self, value: Any) -> Any:
    """Converts an accepted value to the type stored in the dataclass."""
    return value

  def parse(self, text: str) -> Any:
    """Parses text from the command line as a literal, or returns the text itself; the result is not checked."""
    try:
      return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
      return text

  def hint(self, value: Any) -> str:
    """A suggestion for a refused value, or ''."""
    return ''


@dataclasses.dataclass(frozen=True)
class Whole(Kind):
  """Whole numbers from `least` to `most`, and those in `also`."""

  least: int
  most: int
  also: tuple[int, ...] = ()

  @property
  def python(self) -> type:
    return int

  @property
  def expected(self) -> str:
    extra = ''.join(f', or {number}' for number in self.also)
    return f'a whole number from {self.least:,} to {self.most:,}{extra}'

  def accepts(self, value: Any) -> bool:
    return type(value) is int and (self.least <= value <= self.most or value in self.also)


@dataclasses.dataclass(frozen=True)
class Real(Kind):
  """Finite numbers from `least` (or above it) to `most` (or below it)."""

  least: float = 0.0
  most: float = LARGEST
  above: bool = False  # `least` itself is refused
  below: bool = False  # `most` itself is refused

  @property
  def python(self) -> type:
    return float

  @property
  def expected(self) -> str:
    if self.above:
      return f'a number above {self.least:g} and {"below" if self.below else "at most"} {self.most:g}'
    return f'a number from {self.least:g} to {"below " if self.below else ""}{self.most:g}'

  def accepts(self, value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
      return False  # the comparisons below refuse NaN and infinities
    return (self.least < value if self.above else self.least <= value) and (
      value < self.most if self.below else value <= self.most
    )

  def normal(self, value: Any) -> float:
    return float(value)


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
  """True or False."""

  @property
  def expected(self) -> str:
    return 'True or False'

  def accepts(self, value: Any) -> bool:
    return type(value) is bool


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
  """One of a few names."""

  choices: tuple[str, ...]

  @property
  def expected(self) -> str:
    return ' or '.join(map(repr, self.choices)) if len(self.choices) == 2 else f'one of {", ".join(self.choices)}'

  def accepts(self, value: Any) -> bool:
    return type(value) is str and value in self.choices

  def parse(self, text: str) -> str:
    return text

  def hint(self, value: Any) -> str:
    return did_you_mean(value, self.choices)


@dataclasses.dataclass(frozen=True)
class Text(Kind):
  """A text on one line; `what` describes it."""

  what: str = 'text'

  @property
  def expected(self) -> str:
    return f'{self.what} of at most {_LONGEST:,} characters, on one line'

  def accepts(self, value: Any) -> bool:
    return type(value) is str and len(value) <= _LONGEST and value.isprintable()

  def parse(self, text: str) -> str:
    return text


@dataclasses.dataclass(frozen=True)
class Several(Kind):
  """A list of values of one kind."""

  item: Kind
  least: int
  most: int

  @property
  def expected(self) -> str:
    number = f'{self.least}' if self.least == self.most else f'{self.least:,} to {self.most:,}'
    return f'a list of {number}, each {self.item.expected}'

  def accepts(self, value: Any) -> bool:
    if not isinstance(value, (list, tuple)) or not self.least <= len(value) <= self.most:
      return False
    return all(self.item.accepts(item) for item in value)

  def normal(self, value: Any) -> tuple:
    return tuple(self.item.normal(item) for item in value)


@dataclasses.dataclass(frozen=True)
class OrNone(Kind):
  """Another kind or None, whose meaning is `means`; for values that can be derived from others."""

  kind: Kind
  means: str

  @property
  def python(self) -> type:
    return self.kind.python

  @property
  def expected(self) -> str:
    return f'{self.kind.expected}, or None ({self.means})'

  def accepts(self, value: Any) -> bool:
    return value is None or self.kind.accepts(value)

  def normal(self, value: Any) -> Any:
    return None if value is None else self.kind.normal(value)

  def parse(self, text: str) -> Any:
    return None if text == 'None' else self.kind.parse(text)

  def hint(self, value: Any) -> str:
    return self.kind.hint(value)


@dataclasses.dataclass(frozen=True)
class Group(Kind):
  """A group of further fields, those of a dataclass."""

  of: type

  @property
  def expected(self) -> str:
    return f'a group of fields ({", ".join(fields(self.of))})'

  def accepts(self, value: Any) -> bool:
    return isinstance(value, self.of)


SHARE = Real(0, 1)
BELOW_ONE = Real(0, 1, below=True)


def check_shares(name: str, shares: dict[str, float]) -> None:
  """Raises UserError unless shares, of the group of fields `name`, are at least 0 and add up to 1."""
  if min(shares.values()) < 0 or not abs(sum(shares.values()) - 1) <= 1e-6:  # NaN too
    listing = ', '.join(f'{kind} {share:g}' for kind, share in shares.items())
    raise UserError(f'{name}: the shares are {listing}; expected shares of at least 0 that add up to 1')


def declared(default: Any, kind: Kind, meaning: str) -> Any:
  """Declares a field of a config; `meaning` is a short description."""
  return dataclasses.field(default=default, metadata={'kind': kind, 'meaning': meaning})


def group(default: Any, meaning: str, none: str = '') -> Any:
  """Declares a group of further fields. `none` is the meaning of None; '' refuses None."""
  return dataclasses.field(default=default, metadata={'meaning': meaning, 'none': none})


@dataclasses.dataclass(frozen=True)
class Field:
  """A declared field, as returned by `fields` and `find`."""

  name: str
  default: Any
  meaning: str
  kind: Kind
  group: type | None = None
  none: str = ''


@functools.cache
def fields(cls: type) -> Mapping[str, Field]:
  """Returns the declared fields of a config by name."""
  types = typing.get_type_hints(cls)
  return MappingProxyType({field.name: _field(field, types[field.name]) for field in dataclasses.fields(cls)})


def walk(cls: type, path: str = '') -> Iterator[tuple[str, Field]]:
  """Yields all fields with their dotted paths, groups before their fields."""
  for name, field in fields(cls).items():
    yield f'{path}{name}', field
    if field.group:
      yield from walk(field.group, f'{path}{name}.')


def find(cls: type, path: str, trail: str) -> Field:
  """Returns the field at a dotted path. Raises ValueError with similar names; `trail` names `cls` in messages."""
  *parents, name = path.split('.')
  within: type | None = cls
  for parent in parents:
    found = _child(within, parent, trail)
    trail, within = f'{trail}.{parent}', found.group
  return _child(within, name, trail)


def read(cls: type, values: Any, path: str, *, complete: bool = False) -> Any:
  """Creates a config, an instance of `cls`, from plain containers.

  Args:
    cls: a dataclass of declared fields.
    values: fields by name, as from `dataclasses.asdict`; lists may replace tuples.
    path: the config's name in messages.
    complete: refuse missing fields; otherwise they get their defaults.

  Raises:
    ValueError: a field is unknown, missing or invalid; one line that says what was expected.
  """
  known = fields(cls)
  if not isinstance(values, Mapping):
    raise ValueError(f'{path} is {shown(values)}; expected {Group(cls).expected}')
  for name in values:
    if name not in known:
      raise ValueError(_unknown(name, known, path))
  read_values = {}
  for name, field in known.items():
    where = f'{path}.{name}'
    if name not in values:
      if complete:
        raise ValueError(f'{where} is missing; expected {field.kind.expected}')
    elif not field.group:
      read_values[name] = _value(field, values[name], where)
    elif values[name] is None and field.none:
      read_values[name] = None
    else:
      read_values[name] = read(field.group, values[name], where, complete=complete)
  try:
    return cls(**read_values)
  except ValueError as error:  # an invalid combination; its message starts with the name of this group only
    raise ValueError(f'{path[: path.rfind(".") + 1]}{error}') from error


def check(config: Any, path: str) -> None:
  """Raises ValueError for the first invalid value of an instance or its groups."""
  for name, field in fields(type(config)).items():
    value, where = getattr(config, name), f'{path}.{name}'
    if not field.group:
      _value(field, value, where)
    elif isinstance(value, field.group):
      check(value, where)
    elif value is not None or not field.none:
      raise ValueError(f'{where} is {shown(value)}; expected an instance of {field.group.__name__}')


def did_you_mean(name: Any, names: Any) -> str:
  """Returns 'did you mean ...? ' if one of the names is similar, else ''."""
  near = difflib.get_close_matches(name[:_SHOWN], list(names), n=1) if isinstance(name, str) else []
  return f'did you mean {near[0]!r}? ' if near else ''


def shown(value: Any) -> str:
  """Formats any value for a message: on one line, truncated."""
  try:
    text = ' '.join(repr(value).split())
  except Exception:  # repr of a user's object may fail, and that of integers with too many digits
    text = f'a {type(value).__name__}'
  return text if len(text) <= _SHOWN else f'{text[:_SHOWN]}...'


def _value(field: Field, value: Any, where: str) -> Any:
  if not field.kind.accepts(value):
    hint = field.kind.hint(value)
    raise ValueError(f'{where} is {shown(value)}; {hint}expected {field.kind.expected}')
  return field.kind.normal(value)


def _child(cls: type | None, name: str, trail: str) -> Field:
  known = fields(cls) if cls else {}
  if name not in known:
    raise ValueError(_unknown(name, known, trail))
  return known[name]


def _unknown(name: Any, known: Mapping[str, Any], path: str) -> str:
  return (
    f'{path} has no field {shown(name)}; {did_you_mean(name, known)}'
    f'it has: {", ".join(known) or "no fields, it is a value"}'
  )


def _field(field: dataclasses.Field, annotation: Any) -> Field:
  kind, meaning = field.metadata.get('kind'), field.metadata['meaning']
  if kind:
    return Field(field.name, field.default, meaning, kind)
  classes: list[Any] = [one for one in (annotation, *typing.get_args(annotation)) if dataclasses.is_dataclass(one)]
  return Field(field.name, field.default, meaning, Group(classes[0]), classes[0], field.metadata['none'])
