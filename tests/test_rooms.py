"""The package's folders and modules form layers: imports between them have no cycle."""

import ast
import graphlib
from pathlib import Path

import ditsam_jax

PACKAGE = Path(ditsam_jax.__file__).parent


def _imported(file: Path) -> set[str]:
  """The rooms (folders or modules right below the package) that a file imports from."""
  names = set()
  for node in ast.walk(ast.parse(file.read_text(encoding='utf-8'))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module == PACKAGE.name:
      names |= {f'{node.module}.{alias.name}' for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
      names.add(node.module)
  rooms = {path.stem for path in PACKAGE.iterdir()}
  return {
    room
    for package, _, rest in (name.partition('.') for name in names)
    if package == PACKAGE.name and (room := rest.partition('.')[0]) in rooms
  }


def test_rooms_import_each_other_without_cycles():
  graph: dict[str, set[str]] = {}
  for file in PACKAGE.rglob('*.py'):
    room = Path(file.relative_to(PACKAGE).parts[0]).stem
    graph.setdefault(room, set()).update(_imported(file) - {room})
  assert 'models' in graph['inference'] and 'inference' in graph['serving']
  list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the rooms of a cycle
