"""Pins notebooks and badges to the repository's address and the release's tag: python notebooks/pin.py [--check]

Both are read from pyproject.toml: `Repository` of [project.urls], and the version. With --check nothing is written, and
the exit status is 1 if a file names another address or tag.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ('README.md', 'docs/notebooks.md', *(f'notebooks/*{ending}' for ending in ('.md', '.ipynb')))
_CELL = re.compile(r"REPOSITORY, TAG = '[^']*', '[^']*'")
_BADGE = re.compile(r'https://colab\.research\.google\.com/github/[^/\s]+/[^/\s]+/blob/[^/\s]+/notebooks/')


def pinned(text: str, repository: str, tag: str) -> str:
  """Returns a file's text with this address and tag in install cells and badges."""
  text = _CELL.sub(f"REPOSITORY, TAG = '{repository}', '{tag}'", text)
  account = repository.removeprefix('https://github.com/')
  return _BADGE.sub(f'https://colab.research.google.com/github/{account}/blob/{tag}/notebooks/', text)


def main() -> int:
  project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  repository, tag = project['urls']['Repository'], f'v{project["version"]}'
  if not re.fullmatch(r'https://github\.com/[\w.-]+/[\w.-]+', repository):
    print(
      f'error: Repository is {repository!r} in pyproject.toml; expected https://github.com/ACCOUNT/NAME',
      file=sys.stderr,
    )
    return 2
  other = [
    file
    for pattern in FILES
    for file in sorted(ROOT.glob(pattern))
    if pinned(file.read_text(), repository, tag) != file.read_text()
  ]
  if '--check' not in sys.argv[1:]:
    for file in other:
      file.write_text(pinned(file.read_text(), repository, tag))
  for file in other:
    print(f'{file.relative_to(ROOT)}: {"not pinned" if "--check" in sys.argv[1:] else "pinned"} to {repository} {tag}')
  return int(bool(other) and '--check' in sys.argv[1:])


if __name__ == '__main__':
  sys.exit(main())
