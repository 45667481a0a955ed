"""Damaged and hostile PyTorch files: no weight changes silently, nothing hangs, no name forges a line."""

import os
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from ditsam_jax.convert import flax_to_torch, sources, torch_to_flax
from ditsam_jax.errors import UserError
from tests.convert import torch_models
from tests.small_models import GOLDEN

FLAGS = ('--fusion=layer_wise', '--decoder-heads=4', '--text-heads=4')


def refusal(file, tmp_path, *flags) -> str:
  with pytest.raises(UserError) as error:
    torch_to_flax.main([f'--input={file}', f'--output={tmp_path / "never"}', *(flags or FLAGS)])
  assert '\n' not in str(error.value) and not (tmp_path / 'never').exists()
  return str(error.value)


def flips(content: bytes, count: int) -> list[tuple[int, int]]:
  """Positions and bits to flip: half anywhere, half in entry headers and the zip directory."""
  rng = random.Random(0)
  directory = content.find(b'PK\x01\x02')
  headers = [place for place in range(len(content)) if content.startswith(b'PK\x03\x04', place)]
  anywhere = [rng.randrange(len(content)) for _ in range(count // 2)]
  structure = [
    rng.choice((rng.randrange(directory, len(content)), rng.choice(headers) + rng.randrange(60)))
    for _ in range(count - count // 2)
  ]
  return [(place, rng.randrange(8)) for place in anywhere + structure]


def test_a_flipped_bit_is_refused_or_changes_no_weight(tmp_path):
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), tmp_path / 'sam.pth')
  whole = (tmp_path / 'sam.pth').read_bytes()
  expected = {
    name: sources.to_numpy(tensor).copy() for name, tensor in sources.read(tmp_path / 'sam.pth').tensors.items()
  }
  refused = 0
  for place, bit in flips(whole, 120):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << bit
    (tmp_path / 'sam.pth').write_bytes(damaged)
    try:
      tensors = sources.read(tmp_path / 'sam.pth').tensors
    except UserError as error:
      assert '\n' not in str(error)
      refused += 1
      continue
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():  # the bit was in a date or in padding
      assert sources.to_numpy(tensor).tobytes() == expected[name].tobytes(), (place, bit, name)
  assert refused > 60


def test_a_repacked_file_is_refused(tmp_path):
  """torch.load would read its compressed bytes as weights."""
  with zipfile.ZipFile(GOLDEN / 'ldit.pth') as whole, zipfile.ZipFile(tmp_path / 'x.pth', 'w') as packed:
    for entry in whole.infolist():
      packed.writestr(entry.filename, whole.read(entry), compress_type=zipfile.ZIP_DEFLATED)
  assert 'compressed, which torch.save never does' in refusal(tmp_path / 'x.pth', tmp_path)


@pytest.mark.parametrize(
  'value, dtype, message',
  [
    (torch.nan, torch.float32, 'holds 1 of 32 values that are NaN or infinite'),
    (torch.inf, torch.float16, 'holds 1 of 32 values that are NaN or infinite'),
    (-torch.inf, torch.bfloat16, 'holds 1 of 32 values that are NaN or infinite'),
    (1e300, torch.float64, 'holds 1.0e+300, which overflows'),
    (-3e38, torch.float32, 'holds -3.0e+38, which overflows'),
  ],
)
def test_unusable_values_are_refused(tmp_path, capsys, value, dtype, message):
  content = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  bias = content['state_dict']['module.text_proj.bias'].to(dtype)
  bias[3] = value
  content['state_dict']['module.text_proj.bias'] = bias
  torch.save(content, tmp_path / 'x.pth')
  assert '1 problem with its tensors' in refusal(tmp_path / 'x.pth', tmp_path)
  assert f'  text_proj.bias {message}' in capsys.readouterr().err


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path, capsys):
  content = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  content['state_dict']['module.text_proj.bias'] = torch.zeros(1).expand(2**40)
  torch.save(content, tmp_path / 'x.pth')
  refusal(tmp_path / 'x.pth', tmp_path)
  assert 'more than the file holds numbers for' in capsys.readouterr().err


def test_names_from_files_cannot_forge_lines(tmp_path, capsys):
  content = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  content['state_dict']['module.x\nerror: pwned\x1b[2J'] = torch.zeros(1)
  torch.save(content, tmp_path / 'x.pth')
  refusal(tmp_path / 'x.pth', tmp_path)
  printed = capsys.readouterr().err
  assert r'x\nerror: pwned\x1b[2J is unknown' in printed
  assert not any(line.startswith('error: pwned') for line in printed.splitlines())


def test_many_problems_are_truncated_with_a_count(tmp_path, capsys):
  content = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  content['state_dict'] |= {f'module.unknown.{i}': torch.zeros(1) for i in range(500)}
  torch.save(content, tmp_path / 'x.pth')
  assert '500 problems' in refusal(tmp_path / 'x.pth', tmp_path)
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) < 30 and lines[-1] == '  and 480 more'


@pytest.mark.parametrize('name', ['x.pth', 'model.safetensors'])
def test_pipes_and_devices_are_refused_at_once(tmp_path, name):
  os.mkfifo(tmp_path / name)
  assert 'a device or a pipe' in refusal(tmp_path / name, tmp_path)
  assert 'a device or a pipe' in refusal('/dev/zero', tmp_path)
  assert 'a device or a pipe' in refusal(tmp_path if name.startswith('model') else tmp_path / name, tmp_path)


def test_a_pipe_as_vocabulary_is_refused(tmp_path):
  os.mkfifo(tmp_path / 'vocab.txt')
  assert 'a device or a pipe' in refusal(GOLDEN / 'ldit.pth', tmp_path, *FLAGS, f'--vocab={tmp_path / "vocab.txt"}')


def test_extra_numbers_that_json_cannot_represent_are_dropped(tmp_path):
  content = torch.load(GOLDEN / 'ldit.pth', weights_only=True)
  torch.save(content | {'lr': float('nan'), 'epoch': 10**400}, tmp_path / 'x.pth')
  assert torch_to_flax.main([f'--input={tmp_path / "x.pth"}', f'--output={tmp_path / "m"}', *FLAGS]) == 0
  assert flax_to_torch.main([f'--input={tmp_path / "m"}', f'--output={tmp_path / "back.pth"}']) == 0


@pytest.mark.multiprocess
@pytest.mark.parametrize('command', ['to_flax', 'to_torch', 'export'])
def test_a_full_disk_gives_one_line_and_leaves_nothing(tmp_path, command):
  """Simulated by a limit on file sizes, which fails in the same place and way."""
  output = tmp_path / 'out'
  if command == 'to_flax':
    arguments = ['-m', torch_to_flax.__name__, f'--input={GOLDEN / "ldit.pth"}', f'--output={output}', *FLAGS]
  elif command == 'to_torch':
    arguments = ['-m', flax_to_torch.__name__, '--input=shapes', f'--output={output}']
  else:
    arguments = ['-m', 'ditsam_jax.export', '--checkpoint=shapes', f'--output={output}']
  code = (
    'import os, resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000)); '
    'os.execv(sys.executable, [sys.executable, *sys.argv[1:]])'
  )
  run = subprocess.run(
    [sys.executable, '-c', code, *arguments],
    capture_output=True,
    text=True,
    env=os.environ | {'JAX_ENABLE_COMPILATION_CACHE': 'false'},
  )
  assert run.returncode == 2, run.stderr
  lines = [line for line in run.stderr.splitlines() if not line.startswith(('reading ', 'writing '))]
  assert len(lines) == 1 and lines[0].startswith('error: ') and 'File too large' in lines[0], run.stderr
  assert list(tmp_path.iterdir()) == []


def test_head_counts_of_known_models_are_assumed_and_others_refused():
  """Official sizes need no flag; sizes close to them are refused."""
  from ditsam_jax.convert.architecture import DECODER_HEADS, TEXT_HEADS, read_architecture

  shapes = {name: tuple(tensor.shape) for name, tensor in sources.read(GOLDEN / 'ldit.pth').tensors.items()}
  with pytest.raises(UserError, match='give --decoder-heads'):
    read_architecture(shapes, fusion='layer_wise')
  official = shapes | {
    'mask_decoder.iou_token.weight': (1, 256),
    'mask_decoder.transformer.layers.0.mlp.lin1.weight': (2048, 256),
  }
  with pytest.raises(UserError, match='give --text-heads'):
    read_architecture(official, fusion='layer_wise')
  config, assumed = read_architecture(official, fusion='layer_wise', text_heads=4)
  assert config.mask_decoder.heads == assumed['mask_decoder.heads'] == 8
  assert 'text_encoder.heads' not in assumed and assumed['image_size'] == 512
  assert DECODER_HEADS[256, 2, 2048] == 8 and TEXT_HEADS == {(768, 12, 3072): 12, (1024, 24, 4096): 16}
  with pytest.raises(UserError, match=r'MLP 1024\) match no known model'):
    read_architecture(
      official | {'mask_decoder.transformer.layers.0.mlp.lin1.weight': (1024, 256)}, fusion='layer_wise'
    )


def test_weights_are_read_bit_exactly():
  tensors = sources.read(GOLDEN / 'ldit.pth').tensors
  theirs = torch.load(GOLDEN / 'ldit.pth', weights_only=True)['state_dict']
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(tensor.numpy(), theirs[f'module.{name}'].numpy())
