"""--format=safetensors: transformers reads plain SAMs, and this library reads models with text."""

import dataclasses
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')
transformers = pytest.importorskip('transformers')

import ditsam_jax
from ditsam_jax import export
from ditsam_jax.convert import torch_to_flax
from ditsam_jax.convert.torch_peer import random_inputs, relative_differences, run_ours
from ditsam_jax.errors import UserError
from ditsam_jax.inference.framing import frame
from ditsam_jax.models.weights import is_position, weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.training.start import read_start
from tests.small_models import SAM, random_model, small_config


def exported(checkpoint, output, *flags):
  assert export.main([f'--checkpoint={checkpoint}', f'--output={output}', '--format=safetensors', *flags]) == 0
  return output


def theirs(folder, inputs, **options):
  """The outputs of transformers' SamModel."""
  model = transformers.SamModel.from_pretrained(folder).eval()
  with torch.no_grad():
    return model(
      pixel_values=torch.from_numpy(inputs['images']).permute(0, 3, 1, 2),
      input_points=torch.from_numpy(inputs['points'])[:, None],
      input_labels=torch.from_numpy(inputs['point_labels'])[:, None],
      input_boxes=torch.from_numpy(inputs['boxes'])[:, None],
      **options,
    )


def sam(**changes):
  """SAM with other settings, of the image encoder too."""
  encoder = {name: changes.pop(name) for name in list(changes) if hasattr(SAM.image_encoder, name)}
  return dataclasses.replace(SAM, image_encoder=dataclasses.replace(SAM.image_encoder, **encoder), **changes)


@pytest.mark.slow
@pytest.mark.verifies(
  'Masks and predicted IoU of a plain SAM exported as safetensors',
  against="transformers' SamModel",
  within='2e-5 relative',
)
@pytest.mark.parametrize('case', [{'image_size': 48}, {'attention_scope': 'global'}], ids=str)
def test_transformers_computes_the_same_masks(tmp_path, case):
  model = random_model(sam(**case))
  model.eval()
  saved_model.save(tmp_path / 'model', model)
  folder = exported(tmp_path / 'model', tmp_path / 'hf')
  inputs = random_inputs(model.config)
  out = theirs(folder, inputs, multimask_output=False)
  found = {'low_res_logits': out.pred_masks[:, 0, 0].numpy(), 'iou': out.iou_scores[:, 0, 0].numpy()}
  assert max(relative_differences(run_ours(model, inputs), found).values()) <= 2e-5


@pytest.mark.slow
def test_their_processor_prepares_images_as_we_do(tmp_path):
  folder = exported('sam_shapes_multimask', tmp_path / 'hf')
  processor = transformers.SamProcessor.from_pretrained(folder)
  image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
  pixels = processor(image, return_tensors='np')['pixel_values'][0]
  ours = frame(image, ditsam_jax.load('sam_shapes_multimask').config).square.pixels
  assert np.abs(np.moveaxis(np.asarray(pixels), 0, -1) - ours).max() <= 1e-5


@pytest.mark.slow
def test_the_exported_sam_converts_back_to_the_same_weights(tmp_path):
  model = random_model(SAM)
  saved_model.save(tmp_path / 'model', model)
  exported(tmp_path / 'model', tmp_path / 'hf')
  assert torch_to_flax.main([f'--input={tmp_path / "hf"}', f'--output={tmp_path / "back"}']) == 0
  back = weights_of(ditsam_jax.load(tmp_path / 'back'))
  assert all(np.array_equal(back[name][...], array[...]) for name, array in weights_of(model).items())


@pytest.mark.slow
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_model_with_text_loads_from_safetensors(tmp_path, dtype):
  folder = exported('shapes', tmp_path / 'shapes', f'--dtype={dtype}')
  assert sorted(file.name for file in folder.iterdir()) == ['model.json', 'model.safetensors', 'vocab.txt']
  stored, expected = saved_model.read_weights(folder), saved_model.read_weights('shapes')
  assert stored.keys() == expected.keys()
  assert {name for name, array in stored.items() if str(array.dtype) != 'float32'} == (
    set() if dtype == 'float32' else {name for name in stored if not is_position(name)}
  )
  assert all(np.array_equal(array, expected[name].astype(array.dtype)) for name, array in stored.items())
  segmenter = ditsam_jax.Segmenter(folder)
  assert (
    segmenter.tokenizer(['the red circle'])[0].tolist()
    == ditsam_jax.Segmenter('shapes').tokenizer(['the red circle'])[0].tolist()
  )


def test_training_starts_from_safetensors(tmp_path):
  model = random_model(SAM)
  saved_model.write(
    tmp_path / 'model',
    SAM,
    {name: np.asarray(array[...]) for name, array in weights_of(model).items()},
    safetensors=True,
  )
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  places = {
    name: jax.ShapeDtypeStruct(array.shape, np.float32, sharding=one) for name, array in weights_of(model).items()
  }
  found = read_start(tmp_path / 'model', places)
  assert all(np.array_equal(array, weights_of(model)[name][...]) for name, array in found.items())


def test_a_changed_byte_is_found(tmp_path):
  folder = exported('shapes', tmp_path / 'shapes', '--dtype=float16')
  file = folder / 'model.safetensors'
  content = bytearray(file.read_bytes())
  content[-9] ^= 1
  file.write_bytes(content)
  with pytest.raises(UserError, match='checksum differs'):
    ditsam_jax.load(folder)


def test_weights_that_overflow_are_refused_and_nothing_is_written(tmp_path):
  model = random_model(small_config())
  model.text_proj.kernel.set_value(model.text_proj.kernel[...] * 1e6)
  vocabulary = tmp_path / 'vocab.txt'
  vocabulary.write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *'abcdefghijklmnop']) + '\n')
  saved_model.save(tmp_path / 'model', model, vocabulary=vocabulary)
  with pytest.raises(UserError, match='weights stored as float16: text_proj.kernel holds'):
    exported(tmp_path / 'model', tmp_path / 'out', '--dtype=float16')
  assert not (tmp_path / 'out').exists()


def test_another_folder_is_not_replaced(tmp_path):
  (tmp_path / 'hf').mkdir()
  (tmp_path / 'hf' / 'notes.txt').write_text('mine')
  with pytest.raises(UserError, match='is not an earlier export'):
    exported('sam_shapes', tmp_path / 'hf')
  exported('sam_shapes', tmp_path / 'new')
  (tmp_path / 'new' / 'my_results.csv').write_text('mine')
  exported('sam_shapes', tmp_path / 'new', '--dtype=float16')
  assert json.loads((tmp_path / 'new' / 'config.json').read_text())['dtype'] == 'float16'
  assert (tmp_path / 'new' / 'my_results.csv').read_text() == 'mine'
  model = transformers.SamModel.from_pretrained(tmp_path / 'new')
  model.save_pretrained(tmp_path / 'new')  # as after training it
  with pytest.raises(UserError, match='is not an earlier export'):
    exported('sam_shapes', tmp_path / 'new')
