"""Makes docs/verified.md from the tests: python -m tests.verified > docs/verified.md

Tests that compare with an independent source are marked:

  @pytest.mark.verifies('masks and scores', against='the DIT release', within='2e-5')

The test files are parsed, not imported or run.
"""

import ast
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parent
_FOLDERS = ('models', 'ops', 'training', 'convert', 'inference', 'evaluation', 'data')  # these first, in this order
_HEAD = """# What is verified

Each row is a test, or a group of tests, that compares our results with an independent implementation.
`tests/verified.py` generates this page from the tests.

- **The DIT release**: outputs of the authors' PyTorch code, stored in `tests/golden`; its `README.md` and
  `make_fixtures.py` say how they were made.
- **float64 NumPy**: the formula, reimplemented in double precision.
- All other programs are the original ones, run on the same inputs as ours.
- "Relative" errors are relative to the largest value of the array.

Run these tests alone with `python -m pytest -m verifies`, and the whole suite with `make test`.

| What | Against | Within | Tests |
| --- | --- | --- | --- |
"""


class Claim(NamedTuple):
  """What one test verifies."""

  file: str
  test: str
  what: str
  against: str
  within: str


def claims() -> list[Claim]:
  """The claims of all tests, folder by folder."""
  return [
    Claim(file.relative_to(TESTS).as_posix(), function.name, **_arguments(decorator))
    for file in sorted(TESTS.rglob('test_*.py'), key=_order)
    for function in ast.parse(file.read_text()).body
    if isinstance(function, ast.FunctionDef)
    for decorator in function.decorator_list
    if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == 'pytest.mark.verifies'
  ]


def page() -> str:
  """The text of docs/verified.md."""
  tests: dict[tuple[str, str, str], list[str]] = {}
  for claim in claims():
    files = tests.setdefault((claim.what, claim.against, claim.within), [])
    if claim.file not in files:
      files.append(claim.file)
  rows = [(*claim, ', '.join(f'`{file}`' for file in files)) for claim, files in tests.items()]
  return _HEAD + ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def _order(file: Path) -> tuple[int, Path]:
  folder = file.parent.name
  return _FOLDERS.index(folder) if folder in _FOLDERS else len(_FOLDERS), file


def _arguments(decorator: ast.Call) -> dict[str, str]:
  (what,) = decorator.args
  return {'what': ast.literal_eval(what)} | {str(word.arg): ast.literal_eval(word.value) for word in decorator.keywords}


if __name__ == '__main__':
  print(page(), end='')
