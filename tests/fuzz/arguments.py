"""Invalid paths and values for every option of every command: refused in one line, and no file is created."""

import random
import shutil
from pathlib import Path

from ditsam_jax import compile_report, evaluate, everything, export, predict, train
from ditsam_jax import prepare as prepare_command
from ditsam_jax.convert import flax_to_torch, torch_to_flax
from tests.fuzz.mutations import NUMBERS, TEXTS, URLS, odd_path
from tests.fuzz.outcomes import ACCEPTED, REFUSED, Violation, check_folder, command
from tests.fuzz.seeds import save_picture, save_text_model

MOST_MEMORY = 2**30

# Valid options, except for one that keeps the command from starting long work.
_COMMANDS = {
  'train': (train.main, {
    '--config': 'ldit:refcoco', '--workdir': 'run', '--config.data.data_dir': 'nowhere',
    '--config.init_from': 'sam_shapes',
  }),
  'evaluate': (evaluate.main, {
    '--checkpoint': 'MODEL', '--dataset': 'refcoco', '--split': 'val', '--data-dir': 'nowhere', '--output': 'out',
    '--batch-size': '8', '--limit': '2', '--save-pictures': '1',
  }),
  'predict': (predict.main, {
    '--checkpoint': 'MODEL', '--image': 'IMAGE', '--text': 'the red circle', '--output': 'out', '--json': 'out.jsonl',
    '--batch-size': '1', '--dtype': 'float32',
  }),
  'predict a file': (predict.main, {
    '--checkpoint': 'MODEL', '--prompts': 'PROMPTS', '--images-dir': 'FOLDER', '--output': 'out', '--json': 'out.jsonl',
  }),
  'everything': (everything.main, {
    '--checkpoint': 'MODEL', '--image': 'IMAGE', '--text': 'the red circle', '--text-checkpoint': 'MODEL',
    '--output': 'out', '--json': 'out.jsonl', '--dtype': 'float32', '--points-per-side': '2', '--crop-n-layers': '0',
    '--min-mask-region-area': '9',
  }),
  'prepare': (prepare_command.main, {
    '--dataset': 'refcoco', '--annotations': 'FOLDER', '--images': 'FOLDER', '--data-dir': 'data', '--split-by': 'unc',
    '--processes': '0',
  }),
  'prepare own': (prepare_command.main, {
    '--name': 'mine', '--annotations': 'ROWS', '--images': 'FOLDER', '--masks': 'FOLDER', '--data-dir': 'data',
    '--format': 'jsonl', '--seed': '3', '--model': 'MODEL', '--processes': '0',
  }),
  'export': (export.main, {'--checkpoint': 'MODEL', '--output': 'out', '--dtype': 'float16'}),
  'compile_report': (compile_report.main, {
    '--config': 'ldit:shapes', '--topology': 'nothing:1x1', '--json': 'out.json', '--picture': 'out.png',
  }),
  'torch_to_flax': (torch_to_flax.main, {
    '--input': 'MODEL', '--output': 'out', '--vocab': 'VOCAB', '--text-encoder': 'MODEL', '--config': 'VOCAB',
    '--image-size': '64', '--decoder-heads': '4', '--text-heads': '3', '--fusion': 'layer_wise',
  }),
  'flax_to_torch': (flax_to_torch.main, {'--input': 'MODEL', '--output': 'out.pth'}),
}  # fmt: skip
_PATHS = (
  '--workdir --config.data.data_dir --config.init_from --config --checkpoint --data-dir --output --image --json '
  '--prompts --images-dir --annotations --images --masks --model --picture --input --vocab --text-encoder'
).split()  # fmt: skip
_OUTPUTS = {'run', 'out', 'out.jsonl', 'out.json', 'out.png', 'out.pth', 'out.pth.json', 'data', 'runs'}


def prepare(folder: Path) -> None:
  save_text_model(folder / 'model')
  save_picture(folder / 'a.png')
  (folder / 'folder').mkdir()
  save_picture(folder / 'folder' / 'a.png')
  (folder / 'rows.jsonl').write_text('{"image": "a.png", "text": "the red circle", "mask": [[1, 1, 30, 1, 30, 30]]}\n')
  (folder / 'prompts.jsonl').write_text('{"image": "a.png", "text": "the red circle"}\n')


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  name = chance.choice(list(_COMMANDS))
  main, options = _COMMANDS[name]
  folder = work / 'cwd'
  odd = work / 'odd things'
  odd.mkdir()
  shutil.copytree(made, folder)
  _enter(folder)
  there = {path.name for path in folder.iterdir()}
  places = {
    'MODEL': 'model',
    'IMAGE': 'a.png',
    'PROMPTS': 'prompts.jsonl',
    'FOLDER': 'folder',
    'VOCAB': 'model/vocab.txt',
    'ROWS': 'rows.jsonl',
  }
  options = {option: places.get(value, value) for option, value in options.items()}
  option = chance.choice(list(options))
  if option in _PATHS:
    value = chance.choice(URLS) if chance.random() < 0.5 else odd_path(odd, chance)
  else:
    value = chance.choice([str(chance.choice(NUMBERS)), chance.choice(TEXTS), 'nothing'])
  options[option] = value
  arguments = [f'{each}={given}' for each, given in options.items()]
  if chance.random() < 0.05:
    arguments.append(
      chance.choice(
        ['--\nerror: forged', 'more', '--=', '-', '--config.=', '--config.a.b=c', f'--{chance.choice(TEXTS)}']
      )
    )
  note(f'{name} {option}={value[:80]!r}')
  ran = command(main, arguments)
  if value in URLS and option in _PATHS:
    if ran.status == 0:
      raise Violation('wrong result', f'{option}={value} was taken')
    made_here = {path.name for path in folder.iterdir()} - there
    if made_here:
      raise Violation('partial output', f'{made_here} was made')
  check_folder(folder)
  new = {path.name for path in folder.iterdir()} - there - _OUTPUTS
  if ran.status and new:
    raise Violation('partial output', f'{sorted(new)[:3]} was made')
  return ACCEPTED if ran.status == 0 else REFUSED


def _enter(folder: Path) -> None:
  import os

  os.chdir(folder)
