"""Files that are not complete checkpoints give one clear line, and nothing is written."""

import json
import os
import pickle

import pytest

torch = pytest.importorskip('torch')

from ditsam_jax.convert import names, torch_peer, torch_to_flax
from ditsam_jax.errors import UserError
from ditsam_jax.storage.description import read_config
from tests.convert import torch_models
from tests.small_models import GOLDEN

FLAGS = ('--fusion=layer_wise', '--decoder-heads=4', '--text-heads=4')


@pytest.fixture
def ldit():
  return torch.load(GOLDEN / 'ldit.pth', weights_only=True)


def refusal(tmp_path, file, *flags) -> str:
  """The error of a conversion that must fail without writing anything."""
  with pytest.raises(UserError) as error:
    torch_to_flax.main([f'--input={file}', f'--output={tmp_path / "model"}', *(flags or FLAGS)])
  assert not any('model' in path.name for path in tmp_path.iterdir() if not path.name.startswith('model.'))
  return str(error.value)


class Malicious:
  def __reduce__(self):
    return os.system, ('touch executed',)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  torch.save({'state_dict': {'visual_encoder.pos_embed': Malicious()}}, 'evil.pth')
  (tmp_path / 'old.pth').write_bytes(pickle.dumps({'x': Malicious()}))
  assert 'may run code' in refusal(tmp_path, 'evil.pth')
  refusal(tmp_path, 'old.pth')
  assert not (tmp_path / 'executed').exists()


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('empty.pth', b'', 'is empty'),
    ('text.pth', b'<html>not found</html>', 'not a PyTorch checkpoint'),
    ('half.pth', 'half', 'truncated'),
    ('empty.safetensors', b'', 'is empty'),
    ('text.safetensors', b'<html>not found</html>', 'not a safetensors file'),
  ],
)
def test_files_that_are_not_checkpoints(tmp_path, name, content, message):
  if content == 'half':
    whole = (GOLDEN / 'ldit.pth').read_bytes()
    content = whole[: len(whole) // 2]
  (tmp_path / name).write_bytes(content)
  error = refusal(tmp_path, tmp_path / name)
  assert message in error and name in error and '\n' not in error


def test_content_other_than_tensors(tmp_path):
  for content, message in (
    ({}, 'nothing'),
    ([1], 'list'),
    ({'a': 1}, 'more than tensors'),
    ({'a': torch.zeros(2)}, 'no known model'),
    (torch.zeros(3), 'Tensor'),
    ({'state_dict': {'a': torch.zeros(1)}, 'ema': {'a': torch.zeros(1)}}, 'under ema'),
  ):
    torch.save(content, tmp_path / 'other.pth')
    assert message in refusal(tmp_path, tmp_path / 'other.pth')
  assert 'no such file' in refusal(tmp_path, tmp_path / 'absent.pth')


def test_all_problems_in_one_report(tmp_path, ldit, capsys):
  tensors = ldit['state_dict']
  del tensors['module.visual_encoder.blocks.2.norm1.bias']
  tensors['module.text_proj.weight'] = torch.zeros(3, 4)
  tensors['module.mask_decoder.extra'] = torch.zeros(1)
  tensors['module.adapter.weight'] = torch.zeros(1)
  tensors['module.text_proj.bias'] = torch.zeros(32, dtype=torch.int64)
  torch.save(ldit, tmp_path / 'broken.pth')
  assert '5 problems' in refusal(tmp_path, tmp_path / 'broken.pth')
  listed = capsys.readouterr().err
  assert 'visual_encoder.blocks.2.norm1.bias is missing' in listed
  assert 'text_proj.weight is (3, 4), expected (32, 48)' in listed
  assert 'mask_decoder.extra does not exist in a model of these sizes' in listed
  assert 'adapter.weight is unknown' in listed
  assert 'text_proj.bias holds int64, expected one of float32, float16, bfloat16, float64' in listed


@pytest.mark.parametrize(
  'tensor',
  [
    torch.zeros(32).to_sparse(),
    torch.zeros(32, device='meta'),
    torch.zeros(32, dtype=torch.complex64),
    torch.zeros(32).to(torch.float8_e4m3fn),
  ],
)
def test_tensors_that_are_not_plain_arrays(tmp_path, ldit, tensor, capsys):
  ldit['state_dict']['module.text_proj.bias'] = tensor
  torch.save(ldit, tmp_path / 'odd.pth')
  assert '1 problem with' in refusal(tmp_path, tmp_path / 'odd.pth')
  assert 'text_proj.bias holds' in capsys.readouterr().err


@pytest.mark.parametrize(
  'name, shape, message',
  [
    ('visual_encoder.pos_embed', (8,), r'pos_embed is (8,), expected 4 axes'),
    ('visual_encoder.pos_embed', (1, 8, 7, 48), 'pos_embed is 8 by 7'),
    ('visual_encoder.patch_embed.proj.weight', (), 'patch_embed.proj.weight is (), expected 4 axes'),
    ('visual_encoder.blocks.0.attn.rel_pos_w', (7, 12), 'rel_pos_h and rel_pos_w is 5 by 7'),
    ('visual_encoder.blocks.0.mlp.lin1.weight', (3, 48), 'mlp_ratio is 0'),
  ],
)
def test_shapes_without_a_valid_architecture(tmp_path, ldit, name, shape, message):
  ldit['state_dict'][f'module.{name}'] = torch.ones(shape)
  torch.save(ldit, tmp_path / 'odd.pth')
  assert message in refusal(tmp_path, tmp_path / 'odd.pth')


def test_parts_of_a_parameter_with_different_types(tmp_path, ldit, capsys):
  name = 'module.prompt_encoder.point_embeddings.2.weight'
  ldit['state_dict'][name] = ldit['state_dict'][name].half()
  torch.save(ldit, tmp_path / 'mixed.pth')
  refusal(tmp_path, tmp_path / 'mixed.pth')
  assert 'of several types' in capsys.readouterr().err


def test_contradicting_duplicates_of_a_parameter(tmp_path, capsys):
  tensors = torch_models.hugging_face_sam().state_dict()
  tensors['prompt_encoder.shared_embedding.positional_embedding'] = torch.ones(2, 16)
  torch.save(tensors, tmp_path / 'weights.bin')
  refusal(tmp_path, tmp_path / 'weights.bin', '--decoder-heads=4')
  assert 'are the same parameter, but differ' in capsys.readouterr().err


def test_a_missing_layer(tmp_path, ldit):
  ldit['state_dict'] = {name: tensor for name, tensor in ldit['state_dict'].items() if '.blocks.1.' not in name}
  torch.save(ldit, tmp_path / 'gap.pth')
  assert 'visual_encoder.blocks.1 is missing' in refusal(tmp_path, tmp_path / 'gap.pth')


def test_a_missing_tensor_is_spelled_as_in_its_file(tmp_path):
  ending = 'is missing, so the architecture cannot be inferred; if the file is complete, its model is not supported'
  meta = torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  other = {name.replace('.blocks.', '.layers.').replace('.proj.', '.seq.'): meta[name] for name in meta}  # MobileSAM's
  file = tmp_path / 'mobile.pt'
  torch.save(other, file)
  assert refusal(tmp_path, file) == f'{file}: image_encoder.patch_embed.proj.weight {ending}'
  theirs = torch_models.hugging_face_sam().state_dict()
  del theirs['vision_encoder.layers.0.mlp.lin1.weight']
  torch.save(theirs, tmp_path / 'theirs.bin')
  message = refusal(tmp_path, tmp_path / 'theirs.bin')
  assert message == f'{tmp_path / "theirs.bin"}: vision_encoder.layers.0.mlp.lin1.weight {ending}'
  bert = {'embeddings.word_embeddings.weight': torch.zeros(30, 24)}
  torch.save(bert, tmp_path / 'bert.bin')
  message = refusal(
    tmp_path, tmp_path / 'sam.pth', '--decoder-heads=4', '--fusion=e2e', f'--text-encoder={tmp_path / "bert.bin"}'
  )
  assert message == f'{tmp_path / "bert.bin"}: encoder.layer.0 {ending}'


def test_hugging_faces_names_are_found_from_the_releases():
  theirs = torch_models.hugging_face_sam().state_dict()
  del theirs['prompt_encoder.shared_embedding.positional_embedding']  # also under another name
  for name in theirs:
    assert names.hugging_face_name(str(names.renamed(name, 'hugging_face'))) == name


def test_settings_that_shapes_lack_require_flags(tmp_path):
  file = GOLDEN / 'ldit.pth'
  heads = ('--text-heads=4', '--decoder-heads=4')
  assert '--fusion' in refusal(tmp_path, file, *heads)
  assert 'give --text-heads' in refusal(tmp_path, file, '--fusion=layer_wise', '--decoder-heads=4')
  assert 'give --decoder-heads' in refusal(tmp_path, file, '--fusion=layer_wise', '--text-heads=4')
  assert 'does not fit the tensors' in refusal(tmp_path, file, '--fusion=cross_attention', *heads)
  assert '5 heads do not divide' in refusal(tmp_path, file, '--fusion=e2e', '--text-heads=5', '--decoder-heads=4')
  assert 'expected a multiple' in refusal(tmp_path, file, *FLAGS, '--image-size=100')


def test_files_in_the_wrong_place(tmp_path):
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  torch.save(torch_models.bert().state_dict(), tmp_path / 'bert.pth')
  sam, bert = tmp_path / 'sam.pth', tmp_path / 'bert.pth'
  assert 'is only a BERT' in refusal(tmp_path, bert)
  assert 'is not a BERT' in refusal(tmp_path, sam, f'--text-encoder={sam}')
  assert 'already has a text encoder' in refusal(tmp_path, GOLDEN / 'ldit.pth', f'--text-encoder={bert}')
  heads = ('--text-heads=3', '--decoder-heads=4')
  assert 'choose one with --fusion' in refusal(tmp_path, sam, f'--text-encoder={bert}', *heads)
  assert 'plain SAM' in refusal(tmp_path, sam, '--fusion=e2e', '--decoder-heads=4')
  assert 'takes no text' in refusal(tmp_path, sam, f'--vocab={GOLDEN / "README.md"}', '--decoder-heads=4')
  assert '--text-heads=4: a plain SAM takes no text' in refusal(tmp_path, sam, '--text-heads=4', '--decoder-heads=4')


def test_a_vocabulary_of_another_model(tmp_path):
  (tmp_path / 'vocab.txt').write_text('[PAD]\n[UNK]\n[CLS]\n[SEP]\na\n')
  error = refusal(tmp_path, GOLDEN / 'ldit.pth', *FLAGS, f'--vocab={tmp_path / "vocab.txt"}')
  assert 'has 5 words, the text encoder 40' in error


def test_incomplete_folders(tmp_path):
  folder = tmp_path / 'hub'
  folder.mkdir()
  assert 'pytorch_model.bin' in refusal(tmp_path, folder)
  index = folder / 'model.safetensors.index.json'
  for content, message in (
    ('{', 'not an index'),
    (json.dumps({'weight_map': {'a': 'one.safetensors'}}), 'lists files that are missing'),
    (json.dumps({'weight_map': {'a': '../secret.safetensors'}}), 'lists files that are missing'),
  ):
    index.write_text(content)
    assert message in refusal(tmp_path, folder)
  from safetensors.torch import save_file

  save_file({'b': torch.zeros(1)}, folder / 'one.safetensors')
  index.write_text(json.dumps({'weight_map': {'a': 'one.safetensors'}}))
  assert '1 tensors that no file holds (a)' in refusal(tmp_path, folder)


@pytest.mark.parametrize('foreign', ['cat.jpg', 'model.json'])
def test_a_foreign_folder_is_not_overwritten(tmp_path, foreign):
  (tmp_path / 'photos').mkdir()
  (tmp_path / 'photos' / 'cat.jpg').write_bytes(b'cat')
  (tmp_path / 'photos' / foreign).write_bytes(b'{"modelTopology": 1}' if foreign == 'model.json' else b'cat')
  with pytest.raises(UserError, match='holds something else'):
    torch_to_flax.main([f'--input={GOLDEN / "ldit.pth"}', f'--output={tmp_path / "photos"}', *FLAGS])
  assert (tmp_path / 'photos' / 'cat.jpg').read_bytes() == b'cat'


def test_a_source_inside_the_output_survives(tmp_path):
  arguments = [f'--output={tmp_path / "model"}', *FLAGS]
  assert torch_to_flax.main([f'--input={GOLDEN / "ldit.pth"}', *arguments]) == 0
  inside = tmp_path / 'model' / 'ldit.pth'
  inside.write_bytes((GOLDEN / 'ldit.pth').read_bytes())
  assert torch_to_flax.main([f'--input={inside}', *arguments]) == 0
  assert inside.read_bytes() == (GOLDEN / 'ldit.pth').read_bytes()
  assert [path.name for path in tmp_path.iterdir()] == ['model']


@pytest.mark.slow
@pytest.mark.parametrize('factor', [1.01, float('nan')])
def test_verify_refuses_different_results(tmp_path, monkeypatch, factor):
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  right = torch_peer.run_ours
  monkeypatch.setattr(
    torch_peer, 'run_ours', lambda *given: {name: factor * stage for name, stage in right(*given).items()}
  )
  assert 'differs from PyTorch' in refusal(tmp_path, tmp_path / 'sam.pth', '--decoder-heads=4', '--verify')


@pytest.mark.slow
def test_hugging_faces_config_supplies_settings_that_shapes_lack(tmp_path):
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  torch_models.bert().save_pretrained(tmp_path / 'bert')
  arguments = [
    f'--input={tmp_path / "sam.pth"}',
    f'--text-encoder={tmp_path / "bert"}',
    '--fusion=e2e',
    '--decoder-heads=4',
    '--image-size=64',
    f'--output={tmp_path / "model"}',
  ]
  assert torch_to_flax.main(arguments) == 0
  assert read_config(tmp_path / 'model').text_encoder.heads == 3
  config = json.loads((tmp_path / 'bert' / 'config.json').read_text())
  (tmp_path / 'bert' / 'config.json').write_text(json.dumps(config | {'hidden_act': 'relu'}))
  with pytest.raises(UserError, match="hidden_act is 'relu'; only 'gelu' is supported"):
    torch_to_flax.main(arguments)
