"""The install cell's work: which JAX a runtime needs, what is missing, what pip does, and when a restart is needed."""

import importlib.metadata
import importlib.util
import subprocess
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from notebooks import install

PROJECT = {
  'name': 'ditsam_jax',
  'version': '0.1.0',
  'requires-python': '>=3.11',
  'dependencies': ['jax>=0.10,<0.13', 'numpy>=2'],
  'optional-dependencies': {
    'train': ['optax>=0.2', "never>=1; python_version < '3'"],
    'all': ['ditsam_jax[train,tpu]', 'matplotlib'],
    'tpu': ['jax[tpu]>=0.10,<0.13'],
  },
}


def pci(root, *devices):
  for number, (vendor, device) in enumerate(devices):
    folder = root / 'sys/bus/pci/devices' / str(number)
    folder.mkdir(parents=True)
    (folder / 'vendor').write_text(f'{vendor}\n')
    (folder / 'device').write_text(f'{device}\n')
  return root


def test_a_tpu_is_found_by_its_pci_devices(tmp_path):
  """0x1ae0 is Google; 0x0042 is a network card of theirs, 0x0063 a TPU v5e."""
  assert install.runtime(pci(tmp_path, ('0x1ae0', '0x0042'), ('0x1ae0', '0x0063'), ('0x8086', '0x0063'))) == (
    'tpu',
    'TPU runtime, 1 chip',
  )


def test_all_tpus_that_jax_knows_are_known():
  """JAX's own table, a private name in a file that needs nothing else of JAX; 'plc' has no public name."""
  file = next(
    Path(place) / '_src/hardware_utils.py' for place in importlib.util.find_spec('jax').submodule_search_locations
  )
  spec = importlib.util.spec_from_file_location('hardware_utils', file)
  hardware_utils = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(hardware_utils)
  known = {device for device, kind in hardware_utils._TPU_PCI_DEVICE_IDS.items() if kind.name != 'plc'}
  assert install._TPUS >= known


@pytest.mark.parametrize(
  'answer, extra',
  [
    ('Tesla T4, 580.65.06, 7.5\n', 'cuda13'),
    ('NVIDIA H100 80GB HBM3, 590.48.01, 9.0\nNVIDIA H100 80GB HBM3, 590.48.01, 9.0\n', 'cuda13'),
    ('Tesla V100-SXM2-16GB, 580.65.06, 7.0\n', 'cuda12'),  # CUDA 13 begins with compute capability 7.5
    ('Tesla T4, 550.54.15, 7.5\n', 'cuda12'),
    ('NVIDIA-SMI has failed\n', ''),
  ],
)
def test_the_cuda_version_follows_from_driver_and_gpu(monkeypatch, tmp_path, answer, extra):
  monkeypatch.setattr(install.shutil, 'which', lambda name: f'/usr/bin/{name}')
  monkeypatch.setattr(install.subprocess, 'run', lambda *_, **__: types.SimpleNamespace(stdout=answer))
  assert install.runtime(tmp_path)[0] == extra


def test_extras_of_extras_are_resolved_and_other_platforms_left_out():
  found = set(map(str, install.requirements(PROJECT, ['all'])))
  assert found == {'jax<0.13,>=0.10', 'jax[tpu]<0.13,>=0.10', 'numpy>=2', 'optax>=0.2', 'matplotlib'}


def test_a_requirement_is_met_by_version_and_with_its_extras():
  assert install.is_met(Requirement('numpy>=2'))
  assert not install.is_met(Requirement('numpy>=99'))
  assert not install.is_met(Requirement('a-package-that-nobody-has'))
  needed = [line for line in importlib.metadata.requires('jax') if 'cuda12-pip' not in line and 'extra' in line]
  assert needed and not install.is_met(Requirement('jax[cuda12]'))  # its plugin is not installed here


@pytest.fixture
def clone(tmp_path, monkeypatch):
  """A clone whose requirement `toy` can be installed by a stand-in for pip."""
  (tmp_path / 'pyproject.toml').write_text(
    "[project]\nname = 'ditsam_jax'\nversion = '0.1.0'\nrequires-python = '>=3.11'\ndependencies = ['toy>=2']\n"
  )
  site = tmp_path / 'site'
  monkeypatch.setattr(install, 'CLONE', tmp_path)
  monkeypatch.setattr(install, 'runtime', lambda: ('', 'CPU runtime'))
  monkeypatch.syspath_prepend(site)
  commands = []

  def put(version):
    for old in site.glob('toy-*'):
      (old / 'METADATA').unlink(), (old / 'RECORD').unlink(), old.rmdir()
    (site / f'toy-{version}.dist-info').mkdir(parents=True)
    (site / f'toy-{version}.dist-info' / 'METADATA').write_text(f'Name: toy\nVersion: {version}\n')
    (site / f'toy-{version}.dist-info' / 'RECORD').write_text('toy.py,,\n')
    (site / 'toy.py').write_text(f'version = {version}\n')
    importlib.invalidate_caches()

  def pip(command, **_):
    commands.append(command)
    put('2.5')
    return types.SimpleNamespace(returncode=0, stderr='')

  monkeypatch.setattr(subprocess, 'run', pip)
  yield types.SimpleNamespace(put=put, commands=commands)
  sys.modules.pop('toy', None)


def test_missing_requirements_are_installed_once(clone, capsys):
  install.install()
  assert clone.commands == [[sys.executable, '-m', 'pip', 'install', *install.PIP_OPTIONS, 'toy>=2']]
  assert 'toy 2.5' in capsys.readouterr().out
  install.install()
  assert len(clone.commands) == 1


def test_an_old_version_that_was_not_imported_needs_no_restart(clone, capsys):
  clone.put('1.0')
  install.install()
  assert 'toy 2.5 (was 1.0)' in capsys.readouterr().out


def test_an_old_version_that_was_imported_needs_a_restart(clone):
  clone.put('1.0')
  __import__('toy')
  with pytest.raises(install.RestartNeeded, match=r'restart the session .*then run this cell again: .* the old toy$'):
    install.install()


def test_packages_to_keep_are_left_alone_at_any_version(clone, capsys):
  clone.put('1.0')
  install.install(keep=['toy'])
  assert clone.commands == [] and 'toy 1.0' in capsys.readouterr().out


def test_a_failure_of_pip_is_shown(clone, monkeypatch):
  failed = types.SimpleNamespace(returncode=1, stderr='ERROR: No matching distribution\nfound for toy>=2\n')
  monkeypatch.setattr(subprocess, 'run', lambda *_, **__: failed)
  with pytest.raises(RuntimeError, match='pip failed: ERROR: No matching distribution found for toy>=2'):
    install.install()


def test_an_old_python_is_refused(clone, monkeypatch):
  monkeypatch.setattr(install.platform, 'python_version', lambda: '3.10.14')
  with pytest.raises(RuntimeError, match='this is Python 3.10.14; ditsam_jax needs >=3.11'):
    install.install()
