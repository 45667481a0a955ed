"""Wrong options and folders are one clear line, before any work."""

import functools
import importlib.util
import json
import shutil
import sys

import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.export import main
from ditsam_jax.exporting import interface
from ditsam_jax.exporting.folders import check_target, written_folder
from ditsam_jax.exporting.formats import FORMATS
from ditsam_jax.exporting.report import checked, worst
from ditsam_jax.storage import saved_model
from tests.small_models import SAM, random_model


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--quantise=int8'], '--quantise=int8 with --format=flax: expected no --quantise'),
    (['--masks=all'], '--masks=all with --format=flax: expected no --masks'),
    (['--format=onnx', '--dtype=bfloat16'], '--dtype=bfloat16 with --format=onnx: expected float32 or float16'),
    (['--format=stablehlo', '--checkpoint=nothing'], "'nothing' does not exist"),
  ],
)
def test_options_that_a_format_lacks(options, message, tmp_path):
  with pytest.raises(UserError, match=message):
    main(['--checkpoint=shapes', f'--output={tmp_path / "out"}', *options])
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('name', [name for name, chosen in FORMATS.items() if chosen.packages])
def test_a_missing_package_names_its_extra(name, tmp_path, monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda package: None)
  with pytest.raises(UserError, match=rf"pip install 'ditsam_jax\[{FORMATS[name].extra}\]'"):
    main(['--checkpoint=shapes', f'--output={tmp_path / "out"}', f'--format={name}'])


@pytest.mark.parametrize('name', ['onnx', 'stablehlo'])
def test_a_folder_of_something_else_is_kept(name, tmp_path):
  (tmp_path / 'thesis.txt').write_text('kept')
  with pytest.raises(UserError, match='is not an earlier export'):
    main(['--checkpoint=shapes', f'--output={tmp_path}', f'--format={name}'])
  assert [file.name for file in tmp_path.iterdir()] == ['thesis.txt']


@pytest.mark.parametrize('name', ['flax', 'safetensors'])
def test_a_model_is_not_replaced_by_its_export(name, tmp_path):
  main(['--checkpoint=sam_shapes', f'--output={tmp_path}/run/model'])
  before = saved_model.read_weights(tmp_path / 'run')
  for checkpoint in ('run', 'run/model'):
    with pytest.raises(UserError, match='is the model itself'):
      main(
        [
          f'--checkpoint={tmp_path / checkpoint}',
          f'--output={tmp_path}/run/../run/model',
          f'--format={name}',
          '--dtype=float16',
        ]
      )
  after = saved_model.read_weights(tmp_path / 'run')
  assert before.keys() == after.keys() and all(after[key].dtype == array.dtype for key, array in before.items())


@pytest.mark.parametrize(('checkpoint', 'name'), [('sam_shapes', 'flax'), ('shapes', 'safetensors')])
def test_a_model_that_is_no_export_is_kept(checkpoint, name, tmp_path):
  export = ['--checkpoint=' + checkpoint, f'--format={name}', '--dtype=float16', f'--output={tmp_path}/mine']
  saved_model.save(tmp_path / 'mine', random_model(SAM), notes={'steps': 7, 'task': 'prompts'})  # as training does
  before = (tmp_path / 'mine' / 'model.json').read_bytes()
  with pytest.raises(UserError, match='mine is not an earlier export of this format; choose another --output'):
    main(export)
  assert (tmp_path / 'mine' / 'model.json').read_bytes() == before
  shutil.rmtree(tmp_path / 'mine')
  main(export)
  (tmp_path / 'mine' / 'my_results.csv').write_text('kept')
  main(export)
  assert (tmp_path / 'mine' / 'my_results.csv').read_text() == 'kept'


@pytest.mark.parametrize('name', ['onnx', 'stablehlo'])
def test_other_files_in_an_earlier_export_are_kept(name, tmp_path):
  parts = pytest.importorskip(f'ditsam_jax.exporting.{FORMATS[name].module}').PARTS
  is_export = functools.partial(interface.is_export, name)
  (tmp_path / 'text_encoder.onnx').touch()
  (tmp_path / 'text_encoder.jaxexport').touch()
  (tmp_path / 'my_results.csv').write_text('kept')
  (tmp_path / 'interface.json').write_text('{"format": "another", "programs": []}')
  with pytest.raises(UserError, match='is not an earlier export'):
    check_target(str(tmp_path), is_export)
  (tmp_path / 'interface.json').write_text(json.dumps({'format': name, 'programs': []}))
  with written_folder(str(tmp_path), is_export, parts) as folder:
    (folder / 'interface.json').write_text('new')
  other = {'onnx': 'text_encoder.jaxexport', 'stablehlo': 'text_encoder.onnx'}[name]
  assert {file.name for file in tmp_path.iterdir()} == {'interface.json', 'my_results.csv', other}


@pytest.mark.parametrize('value', [2e-4, float('nan')])
def test_differences_beyond_the_tolerance_are_refused(value):
  with pytest.raises(UserError, match='masks of ONNX Runtime differs from JAX by .*; nothing was written'):
    checked(worst([{'masks': value, 'iou_predictions': 0.0}, {'iou_predictions': 1e-6, 'masks': 2e-6}]), 'ONNX Runtime')


def test_quantised_programs_may_differ_but_not_give_nan():
  any_number = dict(ours='ONNX Runtime as int8', tolerance=sys.float_info.max)
  assert '5.0e-01' in checked({'masks': 0.5}, **any_number)
  with pytest.raises(UserError, match='masks of ONNX Runtime as int8 differs'):
    checked({'masks': float('nan')}, **any_number)


def test_the_largest_difference_of_each_output():
  assert worst([{'a': 1.0}, {'a': 0.5, 'b': 2.0}, {'b': 3.0}]) == {'a': 1.0, 'b': 3.0}
