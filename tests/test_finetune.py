"""Runs the guide of docs/own_data.md, from files to a tuned model, command by command with fewer steps."""

import contextlib
import io
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ditsam_jax import evaluate, export, predict, prepare, train
from ditsam_jax.config import files
from ditsam_jax.convert import flax_to_torch, torch_to_flax
from ditsam_jax.errors import UserError
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import read_config, vocabulary_file
from ditsam_jax.storage.vocabulary import read_vocabulary
from ditsam_jax.tokenization import Tokenizer
from ditsam_jax.training import memory
from ditsam_jax.training.words import EMBEDDING

ROOT = Path(__file__).parent.parent
COMMANDS = {module.__name__: module.main for module in (evaluate, predict, prepare, train)}
# Extra options that shorten the guide.
SHORTER = {
  'examples/own_pictures.py': ['--pictures=12'],
  'ditsam_jax.prepare': ['--processes=0'],
  'ditsam_jax.evaluate': ['--limit=16'],
  'ditsam_jax.train': [
    '--config.epochs=None',
    '--config.total_steps=2',
    '--config.eval_every=1',
    '--config.eval_samples=16',
  ],
}


def guide():
  """Returns the commands of the page's last chapter."""
  chapter = (ROOT / 'docs' / 'own_data.md').read_text().split('\n## Guide')[1]
  blocks = re.findall(r'^```\n(.*?)^```$', chapter, re.DOTALL | re.MULTILINE)
  return [shlex.split(line) for block in blocks for line in block.splitlines()]


def run(command):
  """Runs a command in this process; returns its output."""
  assert command[0] == 'python', command
  output = io.StringIO()
  with contextlib.redirect_stdout(output):
    if command[1] == '-m':
      name, arguments = command[2], command[3:]
      assert COMMANDS[name](arguments + SHORTER.get(name, [])) == 0
    else:
      sys.argv = [*command[1:], *SHORTER[command[1]]]
      runpy.run_path(command[1], run_name='__main__')
  return output.getvalue()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Where the guide was followed; `said` of it is what each command printed."""
  folder = tmp_path_factory.mktemp('guide')
  for name in ('configs', 'examples'):
    (folder / name).symlink_to(ROOT / name)
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(folder)
    patch.setattr(sys, 'argv', [])
    install, *commands = guide()
    assert install == ['pip', 'install', '--editable', '.[guide]'] and len(commands) == 6
    printed = [run(command) for command in commands]
    (folder / 'printed.json').write_text(json.dumps(printed))
    yield folder


@pytest.mark.slow
def test_the_guide_runs_as_written(folder):
  pictures, prepared, before, trained, after, predicted = json.loads((folder / 'printed.json').read_text())
  assert '12 pictures' in pictures
  for name in ('preview.png', 'report.txt'):
    assert (folder / 'data' / 'mine' / name).exists()
  for text in (before, after):
    assert re.search(r'all\s+\d+\s+[\d.]+\s+\[[\d.]+, [\d.]+\]', text)
  assert 'runs/mine/metrics.json' in trained and 'mine val' in after
  metrics = json.loads((folder / 'runs' / 'mine' / 'metrics.json').read_text())
  assert metrics['split'] == 'val' and metrics['steps'] == 2
  assert list((folder / 'runs' / 'predictions').glob('*.png'))


@pytest.mark.slow
def test_the_example_contains_all_kinds_of_masks_and_both_splits(folder):
  lines = [json.loads(line) for line in (folder / 'own' / 'mine.jsonl').read_text().splitlines()]
  assert {type(line['mask']) for line in lines} == {str, list, dict}
  assert {line['split'] for line in lines} == {'train', 'val'}
  assert len({line['image'] for line in lines}) == 12


@pytest.mark.slow
def test_the_same_validation_samples_are_drawn_at_every_evaluation(folder):
  pictures = sorted((folder / 'runs' / 'mine' / 'validation').iterdir())
  assert [picture.name for picture in pictures] == [f'step_{step:06d}.png' for step in (0, 1, 2)]
  first, last = (np.asarray(Image.open(picture)) for picture in (pictures[0], pictures[-1]))
  assert first.shape == last.shape
  same = (first == last).all(axis=(1, 2)).mean()
  assert 0.1 < same < 1  # margins are equal; the heading and predictions differ
  half = first.shape[1] // 2
  tile = slice(200, 400), slice(40, 40 + half // 4)  # of the first card's photograph
  assert (first[tile] == last[tile]).all()


@pytest.mark.slow
def test_new_words_survive_export_and_conversion(folder, tmp_path):
  """Exports the model, and converts it to PyTorch and back."""
  tuned = folder / 'runs' / 'mine'
  before = list(read_vocabulary(vocabulary_file('shapes')))
  pieces = list(read_vocabulary(vocabulary_file(tuned)))
  new = pieces[len(before) :]
  assert pieces[: len(before)] == before and {'the', 'leaf', 'cyan', 'over'} <= set(pieces) and new == sorted(new)
  assert read_config(tuned).text_encoder.vocab_size == max(640, len(pieces))
  tokenizer = Tokenizer(vocabulary_file(tuned), 12)
  assert tokenizer.unknown('the cyan leaf over the key') == []

  assert export.main([f'--checkpoint={tuned}', f'--output={tmp_path / "half"}', '--dtype=float16']) == 0
  assert flax_to_torch.main([f'--input={tuned}', f'--output={tmp_path / "tuned.pth"}']) == 0
  assert torch_to_flax.main([f'--input={tmp_path / "tuned.pth"}', f'--output={tmp_path / "back"}']) == 0
  for copy in ('half', 'back'):
    assert list(read_vocabulary(vocabulary_file(tmp_path / copy))) == pieces
  there, back = saved_model.read_weights(tuned), saved_model.read_weights(tmp_path / 'back')
  assert all((there[name] == back[name]).all() for name in there)


@pytest.mark.slow
def test_a_resumed_run_keeps_its_words(folder):
  """Rerunning the command keeps the weights; changing the words is refused."""
  (command,) = [command for command in guide() if command[2] == 'ditsam_jax.train']
  weights = saved_model.read_weights(folder / 'runs' / 'mine')
  run(command)
  again = saved_model.read_weights(folder / 'runs' / 'mine')
  assert all((weights[name] == again[name]).all() for name in weights)
  with pytest.raises(UserError, match=r"config.data.add_words was 'from-data', is 'leaf'"):
    run([*command, '--config.data.add_words=leaf'])


@pytest.mark.slow
def test_words_that_would_stay_untrained_are_refused(folder):
  (command,) = [command for command in guide() if command[2] == 'ditsam_jax.train']
  frozen = [*command, '--config.freeze=text_encoder', '--workdir=runs/frozen']
  with pytest.raises(UserError, match="config.freeze is 'text_encoder', so the .* new words .* would stay untrained"):
    run(frozen)
  assert not (folder / 'runs' / 'frozen').exists()


@pytest.mark.slow
def test_a_step_that_does_not_fit_is_refused_before_training(folder, monkeypatch):
  (command,) = [command for command in guide() if command[2] == 'ditsam_jax.train']
  monkeypatch.setenv(memory.VARIABLE, '1MiB')
  monkeypatch.setattr(memory, '_advice', lambda *_: 'ADVICE')
  with pytest.raises(UserError, match=r'a training step needs .* more than the 1\.0 MiB there; ADVICE'):
    run([*command, '--workdir=runs/large'])
  left = {path.name for path in (folder / 'runs' / 'large').iterdir()} - {'.lock'}
  assert left <= {'config.json', 'vocab.txt', 'checkpoints'}
  assert not list((folder / 'runs' / 'large').glob('checkpoints/*'))


@pytest.mark.slow
def test_only_new_rows_differ_from_a_start_with_wordpieces(folder, tmp_path):
  """Uses a model of other sizes with a WordPiece vocabulary; the config takes everything from it."""
  from ditsam_jax.config import lengths
  from ditsam_jax.data import datasets
  from ditsam_jax.parallel import sharding
  from ditsam_jax.training import words
  from ditsam_jax.training.program import build
  from tests.small_models import random_model, small_config

  pieces = '[PAD] [UNK] [CLS] [SEP] [MASK] the of left right fi ##sh le ##af he ##art cup key red ##s a'.split()
  (tmp_path / 'vocab.txt').write_text('\n'.join(pieces) + '\n')
  start = saved_model.save(
    tmp_path / 'start', random_model(small_config(fusion='e2e')), vocabulary=tmp_path / 'vocab.txt'
  )
  given = files.load(
    'finetune:mine',
    [
      f'init_from={start}',
      'data.add_words=from-data,leaf',
      f'data.data_dir={folder}/data',
      'data.augmentation.scale_steps=1',
    ],
  )
  config = lengths.resolve(given, lambda: 100)
  assert config.model == small_config(fusion='e2e')
  source = datasets.open_split('mine', folder / 'data', 'train')
  added = words.added(config, vocabulary_file(start), source, None)
  assert {'leaf', 'cyan', 'over'} <= set(added.words) and not {'fish', 'heart', 'cup'} & set(added.words)
  program = build(config, added.model, sharding.make_mesh(config.mesh))
  state, fresh = program.initial_state(str(start), added.grown(program.state, config))
  stored, table = saved_model.read_weights(start), np.asarray(state.params[EMBEDDING])
  assert fresh == [] and table.shape == (len(pieces) + len(added.words), 24)
  assert table[: len(pieces)].tobytes() == stored[EMBEDDING].tobytes()
  leaf = [pieces.index('le'), pieces.index('##af')]
  np.testing.assert_allclose(table[len(pieces) + added.words.index('leaf')], stored[EMBEDDING][leaf].mean(0), rtol=1e-6)
  rest = {name: array for name, array in (state.params | state.frozen).items() if name != EMBEDDING}
  assert all(np.asarray(array).tobytes() == stored[name].tobytes() for name, array in rest.items())
