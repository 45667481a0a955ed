"""The notebooks as files: pairs, pins, links, length of cells, outputs. `make notebooks` executes them."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import jupytext
import nbformat
import pytest

from notebooks import pin

ROOT = Path(__file__).parents[2]
NAMES = ('quickstart', 'train_on_tpu', 'from_pytorch')
LONGEST_CELL = 15  # lines
LARGEST = 1_500_000  # bytes; GitHub shows nothing of much larger notebooks
ADDRESS = re.compile(r'https?://[^\s`\'")\]}|<>]+')
# Hosts that notebooks link to or download from, each the publisher's own.
HOSTS = {
  'bvisionweb1.cs.unc.edu',  # RefCOCO
  'cloud.google.com',
  'colab.research.google.com',
  'dl.fbaipublicfiles.com',  # SAM
  'github.com',
  'huggingface.co',  # BERT, SamModel
  'images.cocodataset.org',
  'web.archive.org',  # a copy of RefCOCO
}


def notebook(name):
  return nbformat.read(ROOT / 'notebooks' / f'{name}.ipynb', as_version=4)


def cells(name, kind):
  return [cell for cell in notebook(name).cells if cell.cell_type == kind]


@pytest.mark.parametrize('name', NAMES)
def test_a_notebook_is_valid_and_equal_to_its_markdown(name):
  nbformat.validate(notebook(name))
  markdown = jupytext.read(ROOT / 'notebooks' / f'{name}.md')

  def inputs(found):
    return [(cell.cell_type, cell.source, cell.metadata.get('tags', [])) for cell in found.cells]

  assert inputs(notebook(name)) == inputs(markdown)
  assert all(set(cell.metadata) <= {'tags'} for cell in notebook(name).cells)  # no times and places of a run


@pytest.mark.parametrize('name', NAMES)
def test_cells_are_short_and_each_has_some_text_before_it(name):
  for cell in cells(name, 'code'):
    assert len(cell.source.splitlines()) <= LONGEST_CELL, cell.source
  kinds = ''.join(cell.cell_type[0] for cell in notebook(name).cells)
  assert kinds.startswith('m') and 'cccc' not in kinds


@pytest.mark.parametrize('name', NAMES)
def test_the_first_cell_installs_and_the_next_has_the_parameters(name):
  first, second = cells(name, 'code')[:2]
  *shared, call = first.source.splitlines()
  assert shared == cells(NAMES[0], 'code')[0].source.splitlines()[:-1]
  assert call.startswith('install.install(')
  assert second.metadata.tags == ['parameters'] and 'WORK = ' in second.source
  assert not any(cell.metadata.get('tags') for cell in cells(name, 'code')[2:])


@pytest.mark.parametrize('name', NAMES)
def test_links_are_well_formed(name):
  """Offline: the form of addresses, their hosts, and that linked files exist."""
  text = (ROOT / 'notebooks' / f'{name}.md').read_text()
  addresses = ADDRESS.findall(text)
  assert len(addresses) > 2
  for address in addresses:
    parts = urlsplit(address)
    assert parts.hostname in HOSTS, address
    assert '..' not in parts.path and '//' not in parts.path.replace('https://', ''), address
  for link in re.findall(r'\]\((?!http)([^)]+)\)', text):
    assert (ROOT / 'notebooks' / link).is_file(), link
  for file in re.findall(r'`(docs/[\w.]+)`', text):
    assert (ROOT / file).is_file(), file
  (badge,) = (address for address in addresses if '/blob/' in address)
  assert badge.endswith(f'/notebooks/{name}.ipynb')


def test_downloads_state_their_size():
  """Each address that is fetched stands in a table beside its size."""
  for name in ('train_on_tpu', 'from_pytorch'):
    rows = [line for line in (ROOT / 'notebooks' / f'{name}.md').read_text().splitlines() if line.startswith('| ')]
    fetched = {
      urlsplit(address).hostname for cell in cells(name, 'code')[1:] for address in ADDRESS.findall(cell.source)
    }
    for host in fetched:
      assert any(host in row and re.search(r'\d [MG]B', row) for row in rows), host


def test_quickstart_shows_pictures_of_a_real_run():
  file = ROOT / 'notebooks' / 'quickstart.ipynb'
  assert file.stat().st_size <= LARGEST
  run = cells('quickstart', 'code')
  assert [cell.execution_count for cell in run] == list(range(1, len(run) + 1))
  outputs = [output for cell in run for output in cell.outputs]
  assert not [output for output in outputs if output.output_type == 'error']
  assert sum('image/png' in output.get('data', {}) for output in outputs) >= 8
  shown = json.dumps([output for output in outputs if output.output_type == 'stream'])
  assert not re.search(r'/(root|home|tmp|work)/|Traceback', shown)


@pytest.mark.parametrize('name', NAMES[1:])
def test_the_others_are_committed_without_outputs(name):
  assert not any(cell.outputs or cell.execution_count for cell in cells(name, 'code'))


def test_everything_is_pinned_to_the_repository_and_the_version(monkeypatch, capsys):
  monkeypatch.setattr(pin.sys, 'argv', ['pin.py', '--check'])
  assert pin.main() == 0, capsys.readouterr().out
  for name in NAMES:
    assert f'/notebooks/{name}.ipynb)' in (ROOT / 'README.md').read_text()


def test_pinning_replaces_address_and_tag_in_cells_and_badges():
  cell = "REPOSITORY, TAG = 'https://github.com/a/b', 'v1'\nx = 1"
  badge = '[![Open](x.svg)](https://colab.research.google.com/github/a/b/blob/v1/notebooks/n.ipynb)'
  assert (
    pin.pinned(cell, 'https://github.com/c/d', 'v2.0.1')
    == "REPOSITORY, TAG = 'https://github.com/c/d', 'v2.0.1'\nx = 1"
  )
  assert '/github/c/d/blob/v2.0.1/notebooks/n.ipynb)' in pin.pinned(badge, 'https://github.com/c/d', 'v2.0.1')
