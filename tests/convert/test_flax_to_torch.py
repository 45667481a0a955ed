"""torch -> flax -> torch is bit-exact, and models trained here are written in a layout that PyTorch's code loads."""

import json
import shutil

import pytest

torch = pytest.importorskip('torch')

from ditsam_jax.convert import companion, flax_to_torch, torch_to_flax
from ditsam_jax.errors import UserError
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.places import SHIPPED
from tests.convert import torch_models
from tests.small_models import GOLDEN, random_model


def there_and_back(tmp_path, file, *flags):
  assert torch_to_flax.main([f'--input={file}', f'--output={tmp_path / "model"}', *flags]) == 0
  assert flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "back.pth"}']) == 0
  return torch.load(tmp_path / 'back.pth', weights_only=True)


def assert_same_bits(ours, theirs):
  assert ours.keys() == theirs.keys()
  for name, tensor in theirs.items():
    assert ours[name].dtype == tensor.dtype, name
    assert torch.equal(ours[name].reshape(-1).view(torch.uint8), tensor.contiguous().reshape(-1).view(torch.uint8)), (
      name
    )


@pytest.mark.slow
@pytest.mark.verifies('PyTorch weights in and out again', against="the release's six checkpoints", within='equal bits')
@pytest.mark.parametrize(
  'name, flags',
  [
    ('ldit', ['--fusion=layer_wise', '--decoder-heads=4', '--text-heads=4']),
    ('edit', ['--fusion=e2e', '--decoder-heads=4', '--text-heads=4']),
    ('sam_text', ['--decoder-heads=4', '--text-heads=4']),
    ('edit_token', ['--decoder-heads=8', '--text-heads=5']),
    ('ldit_token', ['--decoder-heads=8', '--text-heads=5']),
    ('ldit_wide', ['--decoder-heads=8', '--text-heads=4']),
  ],
)
def test_the_releases_checkpoints_survive_a_round_trip(tmp_path, name, flags):
  back = there_and_back(tmp_path, GOLDEN / f'{name}.pth', *flags)
  original = torch.load(GOLDEN / f'{name}.pth', weights_only=True)
  assert back.keys() == original.keys()
  assert (back['epoch'], back['lr']) == (original['epoch'], original['lr'])
  assert_same_bits(back['state_dict'], original['state_dict'])


@pytest.mark.slow
def test_cross_attention_survives_a_round_trip(tmp_path):
  fusion = 'cross_attention'
  tensors = torch_models.weights_of_peer(torch_models.random_peer(torch_models.text_config(fusion)))
  torch_models.save_release(tensors, tmp_path / 'best.pth')
  back = there_and_back(tmp_path, tmp_path / 'best.pth', *torch_models.TEXT_FLAGS)['state_dict']
  unused = {f'module.{name}' for name in flax_to_torch.unused_tensors(torch_models.text_config(fusion))}
  assert_same_bits(
    {name: tensor for name, tensor in back.items() if name not in unused},
    {f'module.{name}': tensor for name, tensor in tensors.items()},
  )


@pytest.mark.slow
@pytest.mark.verifies(
  'PyTorch weights in and out again, in f32, f16 and bf16', against="a checkpoint of Meta's SAM", within='equal bits'
)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_metas_sam_survives_a_round_trip_in_its_layout_and_type(tmp_path, dtype):
  tensors = torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  tensors = {name: tensor.to(dtype) for name, tensor in tensors.items()}
  torch.save(tensors, tmp_path / 'sam.pth')
  assert_same_bits(there_and_back(tmp_path, tmp_path / 'sam.pth', *torch_models.SAM_FLAGS), tensors)


@pytest.mark.slow
def test_a_model_trained_here_has_all_tensors_of_the_release(tmp_path):
  config = torch_models.text_config('layer_wise')
  saved_model.save(tmp_path / 'model', random_model(config))
  assert flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "out" / "l.pth"}']) == 0
  content = torch.load(tmp_path / 'out' / 'l.pth', weights_only=True)
  golden = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  assert content.keys() == golden.keys()

  def without_numbers(names):  # the golden model has another depth
    return {
      ''.join('#' if character.isdigit() else character for character in name.removeprefix('module.')) for name in names
    }

  assert without_numbers(content['state_dict']) == without_numbers(golden['state_dict'])


@pytest.mark.slow
def test_an_unwritable_output_leaves_nothing(tmp_path):
  saved_model.save(tmp_path / 'model', random_model(torch_models.SAM))
  (tmp_path / 'taken').mkdir()
  with pytest.raises(UserError, match='cannot write .*taken'):
    flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "taken"}'])
  for place in ('model/model.json', 'model/here.pth', 'model/model.json/x.pth'):
    with pytest.raises(UserError, match='cannot write'):
      flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / place}'])
  assert sorted(path.name for path in tmp_path.iterdir()) == ['model', 'taken']
  saved_model.load(tmp_path / 'model')


def test_a_model_with_another_models_weights_is_refused(tmp_path):
  model = random_model(torch_models.SAM)
  weights = {name: variable[...] for name, variable in weights_of(model).items()}
  weights['foo.bar'] = weights.pop('image_encoder.pos_embed')
  saved_model.write(tmp_path / 'model', model.config, weights)
  with pytest.raises(UserError, match='pos_embed is missing, foo.bar is unknown'):
    flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "x.pth"}'])


def test_the_vocabulary_of_a_model_in_a_versions_folder_is_kept(tmp_path):
  """Copies of models in buckets have vocab.txt and weights in the folder that model.json names."""
  shutil.copytree(SHIPPED / 'shapes', tmp_path / 'model' / 'v-00000001')
  (tmp_path / 'model' / 'v-00000001' / 'model.json').rename(tmp_path / 'model' / 'model.json')
  content = json.loads((tmp_path / 'model' / 'model.json').read_text()) | {'folder': 'v-00000001'}
  (tmp_path / 'model' / 'model.json').write_text(json.dumps(content))
  assert flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "x.pth"}']) == 0
  words = (SHIPPED / 'shapes' / 'vocab.txt').read_text(encoding='utf-8').splitlines()
  assert companion.read(tmp_path / 'x.pth.json').vocabulary == words


def test_the_settings_lie_beside_a_link_and_not_beside_its_target(tmp_path, capsys):
  saved_model.save(tmp_path / 'model', random_model(torch_models.SAM))
  (tmp_path / 'disk').mkdir()
  (tmp_path / 'disk' / 'x.pth.json').write_text('something else')
  (tmp_path / 'x.pth').symlink_to(tmp_path / 'disk' / 'x.pth')
  assert flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "x.pth"}']) == 0
  assert (tmp_path / 'x.pth').is_symlink() and torch.load(tmp_path / 'disk' / 'x.pth', weights_only=True)
  assert (tmp_path / 'disk' / 'x.pth.json').read_text() == 'something else'
  assert companion.find(tmp_path / 'x.pth') and 'x.pth.json holds the settings' in capsys.readouterr().out
  (tmp_path / 'model' / 'y.pth').symlink_to(tmp_path / 'disk' / 'y.pth')
  with pytest.raises(UserError, match="inside the model's own folder"):
    flax_to_torch.main([f'--input={tmp_path / "model"}', f'--output={tmp_path / "model" / "y.pth"}'])
