"""The files of an ONNX export: described, checked, halved and quantised."""

import json
import shutil

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch

from ditsam_jax.errors import UserError
from ditsam_jax.exporting import onnx_files, onnx_programs
from ditsam_jax.exporting.onnx_modules import _placement
from ditsam_jax.exporting.onnx_quantised import EXACT, quantise
from ditsam_jax.exporting.onnx_runtime import Session
from ditsam_jax.exporting.reference import cases, computed
from ditsam_jax.exporting.request import Request
from ditsam_jax.geometry.letterbox import letterbox
from ditsam_jax.inference.framing import resized_as_meta
from tests.exporting.conftest import DIT, SAM, saved

pytestmark = pytest.mark.slow


def test_interface_json_describes_the_programs(dit_onnx):
  described = json.loads((dit_onnx.folder / 'interface.json').read_text())
  files = {program['file'] for program in described['programs']}
  assert files == {file.name for file in dit_onnx.folder.glob('*.onnx')}
  for program in described['programs']:
    graph = onnx.load(dit_onnx.folder / program['file']).graph
    for values, entries in ((graph.input, program['inputs']), (graph.output, program['outputs'])):
      assert [value.name for value in values] == [entry['name'] for entry in entries]
      for value, entry in zip(values, entries):
        kind = value.type.tensor_type
        assert [axis.dim_param or axis.dim_value for axis in kind.shape.dim] == entry['shape'], entry
        assert onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type) == entry['dtype']
  assert (dit_onnx.folder / described['text']['vocabulary']).read_text().split() == dit_onnx.source.pieces


def test_the_report_ends_with_small_differences(dit_onnx):
  assert 'masks' in dit_onnx.report
  found = json.loads((dit_onnx.folder / 'interface.json').read_text())['largest_differences_from_jax']
  assert set(found) == {'text_features', 'image_embeddings', 'masks', 'iou_predictions', 'low_res_masks'}
  assert max(found.values()) < 1e-5


def test_files_tell_nothing_of_the_machine(dit_onnx):
  for file in dit_onnx.folder.iterdir():
    content = file.read_bytes()
    assert b'site-packages' not in content and b'ditsam_jax/exporting' not in content, file


def test_a_program_that_computes_something_else_leaves_nothing(dit_onnx, tmp_path, monkeypatch):
  other = saved(tmp_path / 'other', DIT, seed=1)
  monkeypatch.setattr(onnx_programs, 'trace', lambda program: program.file)
  monkeypatch.setattr(onnx_programs, 'save', lambda file, path: shutil.copy(dit_onnx.folder / file, path))
  before = sorted(tmp_path.iterdir())
  with pytest.raises(UserError, match='differs from JAX by .* more than 1e-04; nothing was written'):
    onnx_files.export(Request(str(other), str(tmp_path / 'out')))
  assert sorted(tmp_path.iterdir()) == before


def test_f16_weights_give_the_same_bits(dit_onnx, tmp_path):
  for file in dit_onnx.folder.glob('*.onnx'):
    model = onnx_ir.load(file)
    onnx_programs.halve(model)
    onnx_programs.save(model, tmp_path / file.name)
    assert (tmp_path / file.name).stat().st_size < file.stat().st_size
  case = cases(dit_onnx.source)[-1]
  for name, expected in Session(dit_onnx.folder, DIT)(case).items():
    np.testing.assert_array_equal(Session(tmp_path, DIT)(case)[name], expected, err_msg=name)


def test_int8_keeps_coordinates_and_resizing_exact(dit_onnx, tmp_path):
  for file in dit_onnx.folder.glob('*.onnx'):
    shutil.copy(file, tmp_path)
    quantise(tmp_path / file.name)
  decoder = onnx.load(tmp_path / 'decoder.onnx').graph
  kept = {array.name for array in decoder.initializer if array.data_type == onnx.TensorProto.FLOAT}
  for name in EXACT:
    assert any(each.endswith(name) for each in kept), name
  assert 'MatMulInteger' in {node.op_type for node in decoder.node}
  asked = cases(dit_onnx.source)
  session = Session(tmp_path, DIT)
  for case, stages in zip(asked, computed(dit_onnx.source, asked)):
    low_res = session(case)['low_res_masks'][0]
    assert np.corrcoef(low_res.ravel(), stages.low_res_masks[0].ravel())[0, 1] > 0.99, case.title


def test_weights_beside_a_program_are_replaced_with_it(dit_onnx, tmp_path, monkeypatch):
  file, data = tmp_path / 'decoder.onnx', tmp_path / 'decoder.onnx.data'
  model = onnx_ir.load(dit_onnx.folder / file.name)
  monkeypatch.setattr(onnx_programs, '_LARGEST_FILE', 0)
  onnx_programs.save(model, file)
  single = data.stat().st_size
  quantise(file)
  assert sorted(tmp_path.iterdir()) == [file, data] and data.stat().st_size < single
  session = onnxruntime.InferenceSession(file)
  monkeypatch.undo()
  model = onnx_ir.load(file)
  onnx_programs.halve(model)
  onnx_programs.save(model, file)
  assert list(tmp_path.iterdir()) == [file]
  rng = np.random.default_rng(0)
  sizes = {'prompts': 1, 'points': 2, 'tokens': 4}
  inputs = {
    each.name: rng.random([sizes.get(axis, axis) for axis in each.shape], np.float32) for each in session.get_inputs()
  }
  inputs['orig_im_size'] = np.array([30, 40], np.float32)
  for one, other in zip(session.run(None, inputs), onnxruntime.InferenceSession(file).run(None, inputs)):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize('config', [DIT, SAM], ids=['dit', 'sam'])
def test_images_of_any_size_lie_where_the_library_puts_them(config):
  for height in (1, 2, 7, 63, 64, 65, 80, 241, 1000):
    for width in (1, 3, 50, 64, 97, 333, 1024):
      size = torch.tensor([height, width], dtype=torch.float64)
      (top, rows), (left, columns) = (_placement(config, size, axis) for axis in (0, 1))
      if config is SAM:
        expected = (0, 0, *resized_as_meta(height, width, config.image_size))
      else:
        image = np.zeros((height, width, 3), np.uint8)
        expected = letterbox(image, config.image_size, config.pixel_mean, config.pixel_std)[1]
      assert (top, left, rows, columns) == tuple(expected), (height, width)
