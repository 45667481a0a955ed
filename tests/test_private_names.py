"""Private names of libraries: which ones we use, and that each still behaves as we need.

docs/architecture.md, "Private names of libraries", says why.
"""

import ast
import inspect
import io
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from orbax.checkpoint import type_handlers
from PIL import Image
from tensorflow_datasets.core import example_serializer

from ditsam_jax.data import records
from ditsam_jax.data.preparation import writer
from ditsam_jax.storage import saved_model
from tests.small_models import random_model, small_config

ROOT = Path(__file__).parents[1]
USED = {
  'benchmarks/model_sides.py': {'_foreach_lerp_'},
  'ditsam_jax/analysis/targets.py': {'import _src'},
  'ditsam_jax/data/records.py': {'_tf_dtype'},
  'ditsam_jax/data/preparation/writer.py': {'def _download_and_prepare', 'def _info', 'def _shard_iterators_per_split'},
  'ditsam_jax/exporting/onnx_modules.py': {'_check'},
  'ditsam_jax/data/refcoco/refs.py': {'_Unpickler'},
  'ditsam_jax/data/shapes/builder.py': {'def _info', 'def _split_generators', 'def _generate_examples'},
}


def private(name: str) -> bool:
  documented = ('_', '_asdict', '_exit', '_fields', '_make', '_replace', '_thread')  # public in the standard library
  return name.startswith('_') and not name.startswith('__') and name not in documented


def foreign_private_names(file: Path) -> set[str]:
  """Private modules, attributes and overridden methods of other packages that a file uses."""
  own, found = set(), set()
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      own.add(node.name)
    elif isinstance(node, ast.Name):
      own.add(node.id)
    elif isinstance(node, ast.Attribute) and private(node.attr):
      of_ours = isinstance(node.value, ast.Name) and node.value.id == 'self'
      (own if of_ours else found).add(node.attr)
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [getattr(node, 'module', None) or '', *(alias.name for alias in node.names)]
      found |= {f'import {part}' for name in names for part in name.split('.') if private(part)}
    if isinstance(node, ast.ClassDef) and any('tfds' in ast.unparse(base) for base in node.bases):
      overridden = {item.name for item in node.body if isinstance(item, ast.FunctionDef) and private(item.name)}
      found |= {f'def {name}' for name in overridden}
  return found - own


def test_no_other_private_names_are_used():
  files = [file for room in ('ditsam_jax', 'convert', 'benchmarks') for file in (ROOT / room).rglob('*.py')]
  found = {str(file.relative_to(ROOT)): foreign_private_names(file) for file in files}
  assert {file: names for file, names in found.items() if names} == USED


def test_the_table_in_the_docs_lists_them():
  section = (ROOT / 'docs' / 'architecture.md').read_text().split('### Private names of libraries\n')[1]
  listed: dict[str, set[str]] = {}
  for where, what in re.findall(r'^\| `(\S+)` \| (.*?) \|', section, re.MULTILINE):
    file = where if where.split('/')[0] in ('benchmarks', 'tests') else f'ditsam_jax/{where}'
    listed.setdefault(file, set()).update(name for name in re.findall(r'(?<!\w)_\w+', what) if private(name))
  more = {'ditsam_jax/storage/arrays.py': {'_sharding'}, 'tests/ops': {'_src'}}  # a file of Orbax; in tests only
  used = {file: {name.split()[-1] for name in names} for file, names in USED.items()}
  assert {file: names for file, names in listed.items() if names} == used | more


def picture(shape: tuple[int, ...]) -> io.BytesIO:
  file = io.BytesIO()
  Image.fromarray(np.zeros(shape, np.uint8)).save(file, 'png')
  file.seek(0)
  return file


@pytest.mark.parametrize('patched', [True, False])
def test_tfds_still_needs_help_to_write_nested_sequences_without_tensorflow(patched):
  features = records.record_features('png')
  if not patched:
    del features.get_serialized_info  # TFDS' own again
  one = {'object_id': 1, 'category': 'disc', 'mask': picture((4, 4)), 'expressions': ['a', 'b'], 'kinds': ['', '']}
  record = features.encode_example({'image': picture((4, 4, 3)), 'image_id': 1, 'objects': [one]})
  serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
  if patched:
    assert features.deserialize_example_np(serializer.serialize_example(record))['image_id'] == 1
  else:
    with pytest.raises(ImportError, match='tensorflow'):
      serializer.serialize_example(record)


@pytest.mark.parametrize(
  'base, method, arguments',
  [
    (tfds.core.ShardBasedBuilder, '_shard_iterators_per_split', ['self', 'dl_manager']),
    (tfds.core.DatasetBuilder, '_download_and_prepare', ['self', 'dl_manager', 'download_config']),
    (tfds.core.DatasetBuilder, '_info', ['self']),
    (tfds.core.GeneratorBasedBuilder, '_split_generators', ['self', 'dl_manager']),
    (tfds.core.GeneratorBasedBuilder, '_generate_examples', ['self', 'kwargs']),
  ],
)
def test_tfds_builders_still_have_the_methods_ours_override(base, method, arguments):
  parameters = inspect.signature(getattr(base, method)).parameters
  assert [name for name in parameters if name not in ('args', 'pipeline')][: len(arguments)] == arguments
  assert issubclass(writer.ReferringBuilder, tfds.core.ShardBasedBuilder)


def test_jax_still_asks_these_functions_about_the_local_gpu():
  """`analysis.targets.lowering` replaces them, so that programs for another GPU can be lowered."""
  from jax._src.cudnn import fused_attention_stablehlo as fused

  for name in ('check_compute_capability', 'is_cuda_compute_capability_equal'):
    assert list(inspect.signature(getattr(fused, name)).parameters) == ['capability']
  assert 'check_compute_capability("9.0")' in inspect.getsource(fused.check_is_flash_attention)


def test_orbax_can_still_write_arrays_without_copying_them():
  assert 'deepcopy_host_arrays' in inspect.signature(type_handlers.NumpyHandler).parameters


def test_weights_contain_no_provenance(tmp_path):
  """`_remove_provenance` removes devices, paths and times from what Orbax writes; inspect any new file listed here."""
  folder = saved_model.save(tmp_path / 'model', random_model(small_config())) / 'weights'
  assert {path.name for path in folder.iterdir()} == {
    '_CHECKPOINT_METADATA',
    '_METADATA',
    'manifest.ocdbt',
    'd',
    'ocdbt.process_0',
  }
  assert all(str(tmp_path).encode() not in path.read_bytes() for path in folder.rglob('*') if path.is_file())
