"""docs/verified.md, from the tests: python -m tests.verified > docs/verified.md

A test that compares with an independent source says so:

  @pytest.mark.verifies('masks and scores', against='the DIT release', within='2e-5')

The tests are read, not run, and nothing is imported.
"""

import ast
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
_ROOMS = ('models', 'ops', 'training', 'convert', 'inference', 'evaluation', 'data')  # in this order, then the others
_HEAD = """# What is verified

Each line is a test, or a group of them, that compares with a source that shares no code with ours. `tests/verified.py`
makes this page from the tests.

- **The DIT release**: numbers from running the authors' PyTorch code, kept in `tests/golden`, whose `README.md` and
  `make_fixtures.py` say how they were made.
- **float64 NumPy**: the formula written down again in double precision.
- Other programs are those of their authors, run beside ours on the same inputs.
- "relative" errors are shares of the largest value of an array.

Run these tests alone with `python -m pytest -m verifies`, and the whole suite with `make test`.

| What | Against | Within | Tests |
| --- | --- | --- | --- |
"""


class Claim(NamedTuple):
  """What a test verifies."""

  file: str
  test: str
  what: str
  against: str
  within: str


def claims() -> list[Claim]:
  """Those of all tests, room by room."""
  return [
    Claim(file.relative_to(TESTS).as_posix(), function.name, **_arguments(decorator))
    for file in sorted(TESTS.rglob('test_*.py'), key=_order)
    for function in ast.parse(file.read_text()).body
    if isinstance(function, ast.FunctionDef)
    for decorator in function.decorator_list
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == 'pytest.mark.verifies'
  ]


def page() -> str:
  """The whole of docs/verified.md."""
  tests: dict[tuple[str, str, str], list[str]] = {}
  for claim in claims():
    files = tests.setdefault((claim.what, claim.against, claim.within), [])
    if claim.file not in files:
      files.append(claim.file)
  rows = [(*claim, ', '.join(f'`{file}`' for file in files)) for claim, files in tests.items()]
  return _HEAD + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _order(file: Path) -> tuple[int, Path]:
  room = file.parent.name
  return _ROOMS.index(room) if room in _ROOMS else len(_ROOMS), file


def _arguments(decorator: ast.Call) -> dict[str, str]:
  (what,) = decorator.args
  return {'what': ast.literal_eval(what)} | {str(word.arg): ast.literal_eval(word.value) for word in decorator.keywords}


if __name__ == '__main__':
  print(page(), end='')
