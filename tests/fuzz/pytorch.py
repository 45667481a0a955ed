"""PyTorch files for the converter: damaged bytes and tensors, malicious pickles, odd companion files."""

import functools
import io
import json
import os
import pickle
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from ditsam_jax.convert import flax_to_torch, torch_to_flax
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.building import check_weights
from ditsam_jax.storage.description import read_config
from tests.convert import torch_models
from tests.fuzz.mutations import CANARY, damaged, damaged_json, make_odd
from tests.fuzz.outcomes import ACCEPTED, REFUSED, Violation, check_folder, check_numbers, command

MOST_MEMORY = 2**30
_TEXT = [*torch_models.TEXT_FLAGS, '--fusion=layer_wise']
_FLAGS = {'release': _TEXT, 'legacy': _TEXT, 'meta': torch_models.SAM_FLAGS, 'folder': []}
_FILES = {
  'release': 'a.pth',
  'legacy': 'a.pth',
  'meta': 'a.pth',
  'companion': 'a.pth',
  'safetensors': 'model.safetensors',
  'folder': '',
}
_CHECKED = ('release', 'meta', 'companion')  # formats with checksums: every flipped bit must be detected


class _Hostile:
  """Pickles to a function call that is executed on loading."""

  def __init__(self, call):
    self._call = call

  def __reduce__(self):
    return self._call


_CALLS = [
  (os.system, (f'touch {CANARY}',)),
  (eval, (f"open('{CANARY}', 'w')",)),
  (exec, (f"open('{CANARY}', 'w').close()",)),
  (open, (CANARY, 'w')),
  (Path.touch, (Path(CANARY),)),
]


def prepare(folder: Path) -> None:
  release = torch_models.weights_of_peer(torch_models.random_peer(torch_models.text_config('layer_wise')))
  for name in ('release', 'legacy', 'meta', 'companion', 'safetensors', 'folder'):
    (folder / name).mkdir()
  torch_models.save_release(release, folder / 'release' / 'a.pth')
  torch.save(
    torch.load(folder / 'release' / 'a.pth'), folder / 'legacy' / 'a.pth', _use_new_zipfile_serialization=False
  )
  torch_models.save_meta(torch_models.random_peer(torch_models.SAM), folder / 'meta' / 'a.pth')
  command(torch_to_flax.main, _arguments(folder / 'release' / 'a.pth', folder / 'model', 'release'))
  command(flax_to_torch.main, [f'--input={folder / "model"}', f'--output={folder / "companion" / "a.pth"}'])
  torch_models.hugging_face_sam().save_pretrained(folder / 'folder')
  for path in (folder / 'folder').iterdir():
    shutil.copy(path, folder / 'safetensors')
  assert (folder / 'companion' / 'a.pth.json').exists()


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  kind = chance.choice(list(_FILES))
  source = work / 'in'
  shutil.copytree(made / kind, source)
  file = source / (_FILES[kind] or 'model.safetensors')
  change = chance.choice(['bytes', 'bytes', 'bytes', 'beside', 'tensors', 'hostile', 'odd'])
  if kind in ('safetensors', 'folder') and change in ('hostile',):
    change = 'beside'
  match change:
    case 'bytes':
      data, what = damaged(file.read_bytes(), chance)
      file.write_bytes(data)
    case 'beside':
      what = _damage_beside(source, chance)
    case 'tensors':
      what = _change_tensors(file, chance)
    case 'hostile':
      what = _make_hostile(file, chance)
    case _:
      what = make_odd(chance.choice(sorted(source.iterdir())), chance)
  note(f'{kind} {change}: {what}')
  output = work / 'model'
  given = source if kind == 'folder' else file
  ran = command(torch_to_flax.main, _arguments(given, output, kind))
  check_folder(work)
  if ran.status:
    if output.exists():
      raise Violation('partial output', 'a model was written')
    return REFUSED
  weights = saved_model.read_weights(output)
  check_weights(read_config(output), weights, 'converted')
  check_numbers(**{name.replace('.', '_'): array for name, array in weights.items()})
  if change == 'bytes' and kind in _CHECKED:
    _check_same(weights, made, kind)
  return ACCEPTED


def _arguments(source: Path, output: Path, kind: str) -> list[str]:
  return [f'--input={source}', f'--output={output}', *_FLAGS.get(kind, [])]


@functools.cache
def _expected(made: Path, kind: str) -> dict[str, np.ndarray]:
  output = made.parent / f'expected-{kind}-{os.getpid()}'
  command(torch_to_flax.main, _arguments(made / kind / _FILES[kind], output, kind))
  weights = saved_model.read_weights(output)
  shutil.rmtree(output)
  return weights


def _check_same(weights: dict[str, np.ndarray], made: Path, kind: str) -> None:
  expected = _expected(made, kind)
  if weights.keys() != expected.keys() or any(weights[name].tobytes() != expected[name].tobytes() for name in expected):
    raise Violation('wrong result', 'damaged weights were converted')


def _damage_beside(source: Path, chance: random.Random) -> str:
  """Damages or adds a JSON file beside the weights; returns a description."""
  jsons = sorted(source.glob('*.json'))
  if not jsons:
    target = source / 'a.pth.json'
    target.write_bytes(damaged_json({'format': 'x', 'model': {}, 'tensors_sha256': '0'}, chance)[0])
    return target.name
  file = chance.choice(jsons)
  data, what = damaged_json(json.loads(file.read_text()), chance)
  file.write_bytes(data)
  return f'{file.name}: {what}'


def _change_tensors(file: Path, chance: random.Random) -> str:
  if file.suffix == '.safetensors':
    from safetensors.torch import load_file

    tensors = load_file(file)
    what = _change_one(tensors, chance)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, file)
    return what
  content = torch.load(file)
  what = _change_one(content.get('state_dict', content), chance)
  torch.save(content, file)
  return what


def _change_one(tensors: dict, chance: random.Random) -> str:
  name = chance.choice(list(tensors))
  tensor = tensors[name]
  match chance.choice(['number', 'shape', 'type', 'missing', 'name', 'forged', 'huge']):
    case 'number' if tensor.is_floating_point():
      tensor = tensor.clone()
      tensor.view(-1)[chance.randrange(tensor.numel())] = chance.choice([float('nan'), float('inf'), 3e38, -1e30])
      tensors[name] = tensor
      return f'a number of {name}'
    case 'shape':
      tensors[name] = torch.zeros(
        chance.choice([(), (0,), (1,), (3, 3), (*tensor.shape, 1), tuple(reversed(tensor.shape))])
      )
      return f'{name} is {tuple(tensors[name].shape)}'
    case 'type':
      tensors[name] = tensor.to(chance.choice([torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool]))
      return f'{name} is {tensors[name].dtype}'
    case 'forged':
      tensors['mask_decoder.\nerror: forged\x1b[2J'] = torch.ones(2)
      return 'a forged name'
    case 'huge':
      tensors[name] = torch.zeros(chance.choice([(2**20,), (2**20, 1), (1, 2**20), (1, 1, 2**20), (1, 1024, 1024, 1)]))
      return f'{name} is {tuple(tensors[name].shape)}'
    case 'name':
      tensors[chance.choice(list(tensors))] = tensors.pop(name)
      return f'{name} under another name'
  del tensors[name]
  return f'{name} is missing'


def _make_hostile(file: Path, chance: random.Random) -> str:
  """Replaces the file by a pickle that calls a function, in one of PyTorch's formats; returns the function's name."""
  call = chance.choice(_CALLS)
  content = chance.choice([_Hostile(call), {'state_dict': _Hostile(call)}, {'a': torch.zeros(1), 'b': _Hostile(call)}])
  match chance.choice(['plain', 'zip', 'inside']):
    case 'plain':
      file.write_bytes(pickle.dumps(_plain(content), chance.choice([0, 2, 4])))
    case 'inside' if zipfile.is_zipfile(file):
      stream = io.BytesIO()
      with zipfile.ZipFile(file) as old, zipfile.ZipFile(stream, 'w') as new:
        for entry in old.infolist():
          data = pickle.dumps(_plain(content), 2) if entry.filename.endswith('data.pkl') else old.read(entry)
          new.writestr(entry, data)
      file.write_bytes(stream.getvalue())
    case _:
      torch.save(content, file)
  return call[0].__name__


def _plain(content):
  return {'b': content['b']} if isinstance(content, dict) and 'a' in content else content
