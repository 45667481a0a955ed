"""StableHLO exports run without this library, on JAX versions old and new."""

import json
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export as jax_export

from ditsam_jax.exporting import stablehlo
from ditsam_jax.inference.programs import parts_of
from ditsam_jax.inference.segmenter import Segmenter
from ditsam_jax.models.prompt_encoder import ABSENT
from tests.exporting.conftest import DIT, SAM, Exported, exported
from tests.small_models import GOLDEN, call, random_model, small_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def dit(tmp_path_factory) -> Exported:
  pytest.importorskip('flatbuffers')
  return exported(tmp_path_factory.mktemp('dit'), DIT, 'stablehlo', alone=True)


def without_this_library(folder: Path) -> Path:
  """A folder of links to all installed packages but ours."""
  folder.mkdir()
  for kind in ('purelib', 'platlib'):
    for entry in Path(sysconfig.get_path(kind)).iterdir():
      if 'ditsam' not in entry.name and entry.suffix != '.pth' and not (folder / entry.name).exists():
        (folder / entry.name).symlink_to(entry)
  return folder


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_lines_in_the_docs_run_without_this_library(dit, tmp_path):
  """They give the logits of Segmenter."""
  page = (ROOT / 'docs/export.md').read_text()
  lines = re.search(r'<!-- run by a test -->\n```python\n(.*?)```', page, re.DOTALL).group(1)
  assert [line for line in lines.split('\n') if 'import' in line] == [
    'import json, pathlib',
    'import jax, numpy as np',
    'from jax import export',
  ]
  image = np.random.default_rng(0).integers(0, 255, (DIT.image_size, DIT.image_size, 3)).astype(np.uint8)
  np.save(tmp_path / 'scene.npy', image)
  (tmp_path / 'models').mkdir()
  (tmp_path / 'models/shapes').symlink_to(dit.folder)
  packages = without_this_library(tmp_path / 'packages')
  program = f"""
import sys
sys.path.append({str(packages)!r})
{lines}
import importlib.util
assert importlib.util.find_spec('ditsam_jax') is None and 'flax' not in sys.modules
assert mask.dtype == bool and mask.shape == image.shape[:2]
np.save('masks.npy', masks)
"""
  # -I and -S: no current folder, environment variables or site-packages on the path.
  run = subprocess.run([sys.executable, '-I', '-S', '-c', program], cwd=tmp_path, capture_output=True, text=True)
  assert run.returncode == 0, run.stderr
  expected = Segmenter(dit.model, dtype='float32')(image, 'the large red circle')
  largest = np.abs(expected.logits).max()
  np.testing.assert_allclose(np.load(tmp_path / 'masks.npy')[0, :1], expected.logits, atol=1e-4 * largest, rtol=0)


@pytest.mark.slow
def test_weights_lie_apart_and_programs_run_everywhere(dit):
  described = json.loads((dit.folder / 'interface.json').read_text())
  stored = {}
  for entry in described['programs']:
    program = jax_export.deserialize(bytearray((dit.folder / entry['file']).read_bytes()))
    assert program.platforms == ('cpu', 'cuda', 'tpu')
    with np.load(dit.folder / entry['weights'], allow_pickle=False) as file:
      weights = {name: (file[name].shape, file[name].dtype) for name in file.files}
      stored |= {f'{entry["weights"]} {name}': file[name].size for name in file.files}
    given, inputs = jax.tree.unflatten(program.in_tree, program.in_avals)[0][0], program.in_avals[len(weights) :]
    assert {name: (array.shape, array.dtype) for name, array in given.items()} == weights
    for array, about in zip(inputs, entry['inputs']):
      assert [str(axis) for axis in array.shape] == [str(axis) for axis in about['shape']], about
      assert array.dtype == about['dtype']
  assert sum(stored.values()) == sum(array.size for array in dit.source.weights.values())


@pytest.mark.slow
def test_any_number_of_prompts_and_points(dit):
  loaded, rng = stablehlo.Loaded(dit.folder, DIT), np.random.default_rng(0)
  images = rng.normal(size=(3, DIT.image_size, DIT.image_size, 3)).astype(np.float32)
  points, labels = rng.uniform(0, DIT.image_size, (3, 4, 2)).astype(np.float32), np.array([[1, 0, 1, 0]] * 3, np.int32)
  masks = rng.normal(size=(3, 16, 16)).astype(np.float32)
  given = np.pad(points, ((0, 0), (0, 2), (0, 0))), np.pad(labels, ((0, 0), (0, 2)), constant_values=ABSENT)
  given[1][:, 4] = -1  # SAM's padding point; the other one is no point at all
  embedding = loaded.run('image_encoder_without_text', images)
  squares, _, _ = loaded.run('decoder_without_text', embedding, *given, masks, np.array([True, True, False]))
  model = dit.source.model()
  expected = call(model, images, points=points, point_labels=labels, masks=masks).logits[:2]
  np.testing.assert_allclose(squares[:2, 0], expected, atol=1e-4 * float(np.abs(expected).max()))
  alone = call(model, images, points=points, point_labels=labels).logits[2]
  np.testing.assert_allclose(squares[2, 0], alone, atol=1e-4 * float(np.abs(alone).max()))


@pytest.mark.slow
def test_plain_sam(tmp_path):
  """Windows in the encoder, and Meta's placing of images; the export itself compares with the model."""
  pytest.importorskip('flatbuffers')
  export = exported(tmp_path, SAM, 'stablehlo')
  described = json.loads((export.folder / 'interface.json').read_text())
  assert [program['name'] for program in described['programs']] == ['image_encoder', 'decoder']
  assert described['text'] is None and described['image']['place'] == 'top_left'
  assert max(described['largest_differences_from_jax'].values()) < 1e-5


@pytest.mark.slow
@pytest.mark.verifies(
  'StableHLO exported by JAX 0.10.0', against='the model in the installed JAX', within='1e-5 relative'
)
def test_a_program_of_the_oldest_supported_jax_loads():
  pytest.importorskip('flatbuffers')
  program = jax_export.deserialize(bytearray((GOLDEN / 'exported.jaxexport').read_bytes()))
  config = small_config()
  model = random_model(config)
  model.eval()
  rng = np.random.default_rng(0)
  images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
  text = rng.normal(size=(2, 6, 24)).astype(np.float32)
  found = jax.jit(program.call)(stablehlo.weights_of(parts_of(model))['image_encoder'], images, text)
  expected = model.image_encoder(jnp.asarray(images), jnp.asarray(text))
  np.testing.assert_allclose(found, expected, atol=1e-5 * float(np.abs(expected).max()))


def test_programs_tell_nothing_of_the_machine():
  content = (GOLDEN / 'exported.jaxexport').read_bytes()
  assert b'.py' not in content
