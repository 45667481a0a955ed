"""Runs a command with the packages of its extra alone."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
EXTRAS = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['optional-dependencies']
# Packages that ours need, so they are there whatever the extra: Orbax, Flax and Transformers bring them.
ALWAYS = {'optax', 'huggingface_hub', 'importlib_resources'}


def packages(extra):
  """The import names of an extra's packages and of those of the extras that it includes."""
  found = set()
  for requirement in EXTRAS[extra]:
    name = re.match(r'[\w-]+', requirement)[0]
    if name == 'ditsam_jax':
      found |= {module for other in re.findall(r'\w+', requirement.split('[')[1]) for module in packages(other)}
    else:
      found.add('skimage' if name == 'scikit-image' else name.replace('-', '_'))
  return found


FEATURES = ('train', 'parquet', 'gcs', 'hub', 'convert', 'stablehlo', 'onnx', 'figures', 'notebooks', 'serve')

BLOCKED = """
import runpy, sys
sys.modules.update(dict.fromkeys(%r))  # as if they were not installed
sys.argv = %r
runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
"""


def run_alone(extra: str, name: str, *options: str) -> str:
  """Runs a command in a process where the packages of all other extras fail to import; returns what it printed."""
  allowed = packages(extra) if extra else set()
  blocked = set().union(*map(packages, FEATURES)) - allowed - ALWAYS
  code = BLOCKED % (sorted(blocked), [f'ditsam_jax.{name}', *options])
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout
