"""Installs what a notebook needs into the running kernel. The first cell of every notebook calls `install`.

The package itself is imported from this clone; only its requirements are installed, those of pyproject.toml.
"""

import importlib
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement  # a requirement of every Jupyter kernel
from packaging.utils import canonicalize_name

CLONE = Path(__file__).resolve().parents[1]
_GOOGLE = '0x1ae0'  # PCI vendor
# PCI devices: v2 and v3, v4, v5p, v5e, v6e, 7x, 8t, 8i
_TPUS = {'0x0027', '0x005e', '0x0062', '0x0063', '0x006f', '0x0076', '0x007c', '0x0083'}
PIP_OPTIONS = ('--quiet', '--disable-pip-version-check')
_CUDA_13 = 580, (7, 5)  # the oldest driver and compute capability that CUDA 13 supports


class RestartNeeded(RuntimeError):
  """Packages were replaced after the kernel had imported them."""


def install(*extras: str, keep: Iterable[str] = ()) -> None:
  """Installs the package's requirements, those of `extras`, and JAX for this runtime; prints what it did.

  Does nothing where all requirements are met, so it may be called twice.

  Args:
    extras: names of extras in pyproject.toml.
    keep: packages that are left alone where any version of them is installed.

  Raises:
    RestartNeeded: the kernel had imported a package that was replaced.
    RuntimeError: Python is too old, or pip failed.
  """
  warnings.filterwarnings('ignore', message='IProgress not found')  # of tqdm: bars are drawn as text then
  text = (CLONE / 'pyproject.toml').read_text()
  needed = re.search(r'^requires-python *= *["\'](.*)["\']', text, re.MULTILINE)[1]  # no TOML before Python 3.11
  if not Requirement(f'python{needed}').specifier.contains(platform.python_version()):
    raise RuntimeError(f'this is Python {platform.python_version()}; ditsam_jax needs {needed}: choose another runtime')
  import tomllib

  project = tomllib.loads(text)['project']
  accelerator, about = runtime()
  wanted = requirements(project, [*extras, *filter(None, [accelerator])])
  kept = {name for name in map(canonicalize_name, keep) if _version(name)}
  wanted = [one for one in wanted if canonicalize_name(one.name) not in kept]
  print(f'{about}; Python {platform.python_version()}; ditsam_jax {project["version"]}')
  missing = [one for one in wanted if not is_met(one)]
  if missing:
    before, loaded, started = _versions(), _loaded_files(), time.monotonic()
    print('installing', ', '.join(sorted(one.name for one in missing)), '...', flush=True)
    _pip(wanted)
    changes = {name: version for name, version in _versions().items() if before.get(name) != version}
    print(f'{time.monotonic() - started:.0f} s:', _listed(changes, before))
    if stale := sorted(name for name in changes if name in before and _files(name) & loaded):
      raise RestartNeeded(
        f'restart the session (Colab: Runtime > Restart session), then run this cell again: this kernel still uses the '
        f'old {", ".join(stale)}'
      )
  print('ready:', ', '.join(f'{name} {_version(name)}' for name in ('jax', 'flax', *sorted(kept)) if _version(name)))


def runtime(root: Path = Path('/')) -> tuple[str, str]:
  """The extra of this runtime's accelerator ('tpu', 'cuda12', 'cuda13', '') and a description. Does not import JAX."""
  devices = (root / 'sys/bus/pci/devices').glob('*')
  tpus = sum(_read(one / 'vendor') == _GOOGLE and _read(one / 'device') in _TPUS for one in devices)
  if tpus:
    return 'tpu', f'TPU runtime, {tpus} chip{"s" * (tpus > 1)}'
  if shutil.which('nvidia-smi'):
    query = ['nvidia-smi', '--query-gpu=name,driver_version,compute_cap', '--format=csv,noheader']
    answer = subprocess.run(query, capture_output=True, text=True)
    if gpu := re.match(r'(.+), (\d+)[\d.]*, (\d+)\.(\d+)', answer.stdout):
      name, driver, *capability = gpu.groups()
      is_new = int(driver) >= _CUDA_13[0] and tuple(map(int, capability)) >= _CUDA_13[1]
      return ('cuda13' if is_new else 'cuda12'), f'GPU runtime, {name}, driver {driver}'
  return '', 'CPU runtime'


def requirements(project: dict, extras: Iterable[str]) -> list[Requirement]:
  """The requirements of a project and of its extras, with its extras of extras resolved, without duplicates."""
  lines, found = list(project['dependencies']), {}
  for extra in extras:
    lines += project['optional-dependencies'][extra]
  while lines:
    one = Requirement(lines.pop(0))
    if canonicalize_name(one.name) == canonicalize_name(project['name']):
      lines += [line for extra in sorted(one.extras) for line in project['optional-dependencies'][extra]]
    elif one.marker is None or one.marker.evaluate():
      found[str(one)] = one
  return list(found.values())


def is_met(one: Requirement) -> bool:
  """Whether a requirement is installed, with its own extras."""
  version = _version(one.name)
  if version is None or not one.specifier.contains(version, prereleases=True):
    return False
  needed = [Requirement(line) for line in metadata.requires(one.name) or () if one.extras and ';' in line]
  of_extras = [need for need in needed if not need.marker.evaluate({'extra': ''})]
  return all(is_met(need) for need in of_extras for extra in one.extras if need.marker.evaluate({'extra': extra}))


def _pip(wanted: list[Requirement]) -> None:
  pip = [sys.executable, '-m', 'pip', 'install', *PIP_OPTIONS, *map(str, wanted)]
  done = subprocess.run(pip, capture_output=True, text=True)
  if done.returncode:
    raise RuntimeError(f'pip failed: {" ".join(done.stderr.split())[-1000:]}')
  importlib.invalidate_caches()


def _listed(changes: dict[str, str], before: dict[str, str]) -> str:
  return ', '.join(
    f'{name} {version}' + (f' (was {before[name]})' if name in before else '') for name, version in changes.items()
  )


def _version(name: str) -> str | None:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:
    return None


def _versions() -> dict[str, str]:
  found = sorted((canonicalize_name(one.name), one.version) for one in metadata.distributions() if one.name)
  return dict(found)


def _loaded_files() -> set[str]:
  return {file for module in list(sys.modules.values()) if (file := getattr(module, '__file__', None))}


def _files(name: str) -> set[str]:
  found = metadata.distribution(name)
  return {str(found.locate_file(file)) for file in found.files or ()}


def _read(file: Path) -> str:
  return file.read_text().strip() if file.is_file() else ''
