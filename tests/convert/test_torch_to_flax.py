"""All formats convert, and converted models give PyTorch's results."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')

import ditsam_jax
from ditsam_jax.convert import torch_to_flax
from ditsam_jax.convert.torch_peer import random_inputs, relative_differences, run_ours, run_peer
from ditsam_jax.models.instruction import FUSIONS
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_config
from tests.convert import torch_models
from tests.small_models import GOLDEN, golden_arrays, golden_config


def convert(*flags) -> None:
  assert torch_to_flax.main([str(flag) for flag in flags]) == 0


def largest_difference(directory, peer) -> float:
  """The largest difference over all stages, in float64, because small random models amplify rounding a hundredfold."""
  model = ditsam_jax.load(directory)
  inputs = random_inputs(model.config, batch=2)
  with jax.enable_x64(True):
    for variable in weights_of(model).values():
      variable.set_value(variable[...].astype(np.float64))
    ours = run_ours(model, inputs | {'images': inputs['images'].astype(np.float64)})
  return max(relative_differences(ours, run_peer(peer.double(), inputs)).values())


@pytest.mark.slow
@pytest.mark.verifies(
  "Masks of the release's six checkpoints, converted", against='the DIT release', within='2e-5 relative'
)
@pytest.mark.parametrize(
  'name, flags, side',
  [
    ('ldit', ['--fusion=layer_wise', '--decoder-heads=4', '--text-heads=4'], 128),
    ('edit', ['--fusion=e2e', '--decoder-heads=4', '--text-heads=4'], 128),
    ('sam_text', ['--decoder-heads=4', '--text-heads=4'], 128),
    ('edit_token', ['--decoder-heads=8', '--text-heads=5'], 96),
    ('ldit_token', ['--decoder-heads=8', '--text-heads=5'], 96),
    ('ldit_wide', ['--decoder-heads=8', '--text-heads=4'], 96),
  ],
)
def test_the_releases_checkpoints_give_the_releases_results(tmp_path, name, flags, side):
  convert(
    f'--input={GOLDEN / f"{name}.pth"}',
    f'--output={tmp_path / "model"}',
    f'--image-size={side}',
    *flags,
  )
  model = ditsam_jax.load(tmp_path / 'model')
  golden = {
    key.removeprefix(f'{side}/'): value for key, value in golden_arrays(name).items() if key.startswith(f'{side}/')
  }
  ours = run_ours(
    model,
    dict(images=np.moveaxis(golden['image'], 1, -1), token_ids=golden['token_ids'], token_mask=golden['token_mask']),
  )
  error = np.abs(ours['logits'] - golden['logits'][:, 0]).max() / np.abs(golden['logits']).max()
  assert error <= 2e-5
  text = dataclasses.replace(model.config.text_encoder, dropout=0.0)  # the golden models have no dropout
  assert dataclasses.replace(model.config, text_encoder=text, fusion_dropout=0.0) == golden_config(name, side)


@pytest.mark.slow
@pytest.mark.verifies(
  'Every stage of a converted model of every fusion, and of plain SAM with windows',
  against="the same model in PyTorch, of Meta's modules, in float64",
  within='2e-6 relative',
)
@pytest.mark.parametrize('fusion', FUSIONS)
def test_every_fusion_is_detected_and_exact(tmp_path, fusion):
  peer = torch_models.random_peer(torch_models.text_config(fusion))
  torch_models.save_release(torch_models.weights_of_peer(peer), tmp_path / 'best.pth', prefix='')
  flags = [f'--fusion={fusion}'] if fusion in ('layer_wise', 'e2e') else []
  convert(f'--input={tmp_path / "best.pth"}', f'--output={tmp_path / "model"}', *torch_models.TEXT_FLAGS, *flags)
  assert read_config(tmp_path / 'model').fusion == fusion
  assert largest_difference(tmp_path / 'model', peer) <= 2e-6


@pytest.mark.slow
@pytest.mark.verifies(
  'Every stage of a converted model of every fusion, and of plain SAM with windows',
  against="the same model in PyTorch, of Meta's modules, in float64",
  within='2e-6 relative',
)
def test_metas_sam_with_windows(tmp_path, capsys):
  peer = torch_models.random_peer(torch_models.SAM)
  torch_models.save_meta(peer, tmp_path / 'sam.pth')
  convert(f'--input={tmp_path / "sam.pth"}', f'--output={tmp_path / "model"}', *torch_models.SAM_FLAGS, '--verify')
  assert ditsam_jax.load(tmp_path / 'model').config == torch_models.SAM
  assert largest_difference(tmp_path / 'model', peer) <= 2e-6
  printed = capsys.readouterr().out
  assert 'global blocks 1; windows of 3' in printed
  assert 'image_embedding' in printed


@pytest.mark.slow
@pytest.mark.verifies(
  'Masks and predicted IoU of a converted SamModel', against="transformers' SamModel", within='2e-5 relative'
)
@pytest.mark.parametrize('layout', ['safetensors', 'sharded', 'bin'])
def test_hugging_faces_sam(tmp_path, layout):
  theirs = torch_models.hugging_face_sam()
  if layout == 'bin':
    torch.save(theirs.state_dict(), tmp_path / 'pytorch_model.bin')
  else:
    theirs.save_pretrained(tmp_path, max_shard_size='40KB' if layout == 'sharded' else '1GB')
  assert (layout == 'sharded') == (tmp_path / 'model.safetensors.index.json').exists()
  convert(f'--input={tmp_path}', f'--output={tmp_path / "model"}', *torch_models.SAM_FLAGS)
  model = ditsam_jax.load(tmp_path / 'model')
  inputs = random_inputs(model.config)
  ours = run_ours(model, inputs)
  with torch.no_grad():
    out = theirs(
      pixel_values=torch.from_numpy(inputs['images']).permute(0, 3, 1, 2),
      multimask_output=False,
      input_points=torch.from_numpy(inputs['points'])[:, None],
      input_labels=torch.from_numpy(inputs['point_labels'])[:, None],
      input_boxes=torch.from_numpy(inputs['boxes'])[:, None],
    )
  theirs = {'low_res_logits': out.pred_masks[:, 0, 0].numpy(), 'iou': out.iou_scores[:, 0, 0].numpy()}
  assert max(relative_differences(ours, theirs).values()) <= 2e-5


@pytest.mark.slow
@pytest.mark.parametrize('spelling', ['plain', 'old'])
def test_a_sam_and_a_bert_are_combined_for_training(tmp_path, spelling, capsys):
  sam = torch_models.random_peer(torch_models.SAM)
  torch_models.save_meta(sam, tmp_path / 'sam.pth')
  text = torch_models.bert()
  folder = tmp_path / 'bert'
  if spelling == 'plain':
    text.save_pretrained(folder)
  else:  # TensorFlow's names, in a file that includes the pre-training heads
    folder.mkdir()
    tensors = {
      'bert.' + name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta'): tensor
      for name, tensor in text.state_dict().items()
      if 'position_ids' not in name
    }
    torch.save(tensors | {'cls.predictions.bias': torch.zeros(30)}, folder / 'pytorch_model.bin')
  (folder / 'vocab.txt').write_text('\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', *map(str, range(26))]) + '\n')
  convert(
    f'--input={tmp_path / "sam.pth"}',
    f'--text-encoder={folder}',
    '--fusion=layer_wise',
    f'--output={tmp_path / "model"}',
    *torch_models.TEXT_FLAGS,
    '--verify',
  )
  printed = capsys.readouterr().out
  assert 'fresh: text_proj (a plain SAM has no text prompts)' in printed
  assert 'fresh: image_encoder.instruction (the fusion is new)' in printed
  model = ditsam_jax.load(tmp_path / 'model')
  assert not np.any(model.image_encoder.instruction.probs[0].kernel[...])  # a new fusion starts at zero
  assert np.any(model.text_proj.kernel[...])
  assert (tmp_path / 'model' / 'vocab.txt').read_text() == (folder / 'vocab.txt').read_text()
  kept = saved_model.read_leftovers(tmp_path / 'model')
  assert set(kept) == {'lang_encoder.bert.pooler.dense.weight', 'lang_encoder.bert.pooler.dense.bias'}
  inputs = random_inputs(model.config)
  with torch.no_grad():
    states = text(torch.from_numpy(inputs['token_ids']), attention_mask=torch.from_numpy(inputs['token_mask']))
  difference = relative_differences(run_ours(model, inputs), {'text_features': states.last_hidden_state.numpy()})
  assert difference['text_features'] <= 1e-5


@pytest.mark.slow
def test_deeper_decoders_are_inferred_from_the_tensors(tmp_path):
  config = torch_models.text_config('none')
  config = dataclasses.replace(config, mask_decoder=dataclasses.replace(config.mask_decoder, depth=4))
  peer = torch_models.random_peer(config)
  torch_models.save_release(torch_models.weights_of_peer(peer), tmp_path / 'add_2.pth')
  convert(f'--input={tmp_path / "add_2.pth"}', f'--output={tmp_path / "model"}', *torch_models.TEXT_FLAGS)
  assert read_config(tmp_path / 'model').mask_decoder.depth == 4
  assert largest_difference(tmp_path / 'model', peer) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_is_kept_on_disk_and_loaded_as_f32(tmp_path, dtype):
  peer = torch_models.random_peer(torch_models.SAM)
  halves = {name: tensor.to(dtype) for name, tensor in torch_models.save_meta(peer, tmp_path / 'sam.pth').items()}
  torch.save(halves, tmp_path / 'half.pth')
  convert(f'--input={tmp_path / "half.pth"}', f'--output={tmp_path / "model"}', *torch_models.SAM_FLAGS)
  stored = saved_model.read_weights(tmp_path / 'model')['image_encoder.pos_embed']
  assert str(stored.dtype) == str(dtype).removeprefix('torch.')
  loaded = ditsam_jax.load(tmp_path / 'model').image_encoder.pos_embed[...]
  np.testing.assert_array_equal(loaded, halves['image_encoder.pos_embed'][0].float().numpy())


@pytest.mark.multiprocess
def test_the_script_runs_from_any_folder_without_installation(tmp_path):
  script = Path(__file__).parents[2] / 'convert' / 'torch_to_flax.py'
  run = subprocess.run(
    [sys.executable, script, f'--input={GOLDEN / "ldit.pth"}', '--output=model', '--decoder-heads=4', '--text-heads=4'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert run.returncode == 2
  assert run.stderr.splitlines()[-1] == (
    'error: tensor names and shapes fit the fusions layer_wise and e2e equally; choose one with --fusion'
  )
  assert list(tmp_path.iterdir()) == []


@pytest.mark.multiprocess
@pytest.mark.parametrize('name, platforms', [('main', 'None'), ('run', 'cpu')])
def test_only_the_command_keeps_jax_off_accelerators(name, platforms):
  """A notebook that converts and then trains in the same process must still find its TPU."""
  call = {
    'main': 'main(["--input=none.pth", "--output=none"])',
    'run': 'command_line.run(lambda: main(["--input=none.pth", "--output=none"]), on_cpu=True)',
  }[name]
  program = (
    'import jax\nfrom ditsam_jax import command_line\nfrom ditsam_jax.convert.torch_to_flax import main\n'
    f'try: {call}\nexcept BaseException: print(jax.config.jax_platforms)'
  )
  environment = {name: value for name, value in os.environ.items() if name != 'JAX_PLATFORMS'}
  run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, env=environment)
  assert run.stdout == f'{platforms}\n', run.stderr


def test_inferred_settings_are_stored_in_the_models_config(tmp_path):
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  convert(f'--input={tmp_path / "sam.pth"}', f'--output={tmp_path / "model"}', *torch_models.SAM_FLAGS)
  described = json.loads((tmp_path / 'model' / 'model.json').read_text())
  assert described['notes']['source'] == {'format': 'meta', 'prefix': ''}
  assert described['model']['image_encoder']['heads'] == 2  # width 24 / 12 channels per head, from relative positions
