"""Commands run with the packages of their extra alone; imports of all other extras' packages fail here."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

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


@pytest.mark.multiprocess
@pytest.mark.parametrize(
  'extra, command',
  [
    ('', 'predict --checkpoint=shapes --image={scene} --text=star --output={out}'),
    ('', 'everything --checkpoint=sam_shapes --image={scene} --points-per-side=4 --output={out}'),
    ('stablehlo', 'export --checkpoint=shapes --format=stablehlo --output={out}'),
    ('onnx', 'export --checkpoint=sam_shapes --format=onnx --output={out}'),
    ('serve', 'serve --help'),
    ('train', 'train --config=ldit:shapes --help'),
    ('train', 'evaluate --help'),
    ('convert', 'convert.torch_to_flax --help'),
    ('convert', 'export --checkpoint=sam_shapes --format=safetensors --output={out}'),
  ],
)
def test_a_command_needs_the_packages_of_its_extra_alone(extra, command, tmp_path):
  allowed = packages(extra) if extra else set()
  blocked = set().union(*map(packages, FEATURES)) - allowed - ALWAYS
  name, *options = command.format(scene=ROOT / 'docs' / 'scene.png', out=tmp_path / 'out').split()
  code = BLOCKED % (sorted(blocked), [f'ditsam_jax.{name}', *options])
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr[-2000:]
