"""Saved models: damaged model.json, vocabularies and weights; missing files and paths that are not regular files."""

import functools
import json
import random
import shutil
from pathlib import Path

import numpy as np
from flax import nnx

from ditsam_jax.models.config import DitSamConfig
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.description import vocabulary_file, warn_if_fresh
from ditsam_jax.tokenization import Tokenizer
from tests.fuzz.mutations import changed, damaged, damaged_json, make_odd
from tests.fuzz.outcomes import ACCEPTED, Violation, attempt, check_numbers
from tests.fuzz.seeds import save_sam, save_text_model

MOST_MEMORY = 2**31  # a config may request this much before its weights turn out not to fit


def prepare(folder: Path) -> None:
  save_text_model(folder / 'text')
  save_sam(folder / 'sam')
  text = json.loads((folder / 'text' / 'model.json').read_text())
  shutil.copytree(folder / 'text', folder / 'older')  # a model saved before there were checksums
  (folder / 'older' / 'model.json').write_text(
    json.dumps({name: value for name, value in text.items() if name not in ('files', 'vocabulary')})
  )


@functools.cache
def _expected(model: Path) -> dict[str, np.ndarray]:
  return {name: np.asarray(value[...]) for name, value in weights_of(saved_model.load(model)).items()}


def _load(folder: Path) -> tuple[nnx.Module, Tokenizer | None]:
  model = saved_model.load(folder)
  if model.config.text_encoder is None:
    return model, None
  return model, Tokenizer(vocabulary_file(folder), model.config.max_text_tokens)


def case(made: Path, work: Path, chance: random.Random, note) -> str:
  kind = chance.choice(['text', 'text', 'sam', 'older'])
  model = work / 'model'
  shutil.copytree(made / kind, model)
  files = sorted(path for path in model.rglob('*') if path.is_file())
  weights = [path for path in files if 'weights' in path.parts]
  description = model / 'model.json'
  match chance.choice(['json', 'json', 'config', 'weights', 'weights', 'any', 'odd', 'foreign']):
    case 'json':
      data, what = damaged_json(json.loads(description.read_text()), chance)
      description.write_bytes(data)
    case 'config':
      content = json.loads(description.read_text())
      content['model'], what = changed(content['model'], chance)
      description.write_text(json.dumps(content))
    case 'weights':
      file = chance.choice(weights)
      data, what = damaged(file.read_bytes(), chance, chance.choice(weights).read_bytes())
      file.write_bytes(data)
      what = f'{file.relative_to(model)}: {what}'
    case 'any':
      file = chance.choice(files)
      data, what = damaged(file.read_bytes(), chance)
      file.write_bytes(data)
      what = f'{file.relative_to(model)}: {what}'
    case 'odd':
      what = make_odd(chance.choice([*files, model / 'weights']), chance)
    case _:
      other = 'sam' if kind == 'text' else 'text'
      part = chance.choice(['weights', 'model.json', 'vocab.txt'])
      what = f'{part} of {other}'
      if part == 'weights':
        shutil.rmtree(model / part)
        shutil.copytree(made / other / part, model / part)
      elif (made / other / part).exists():
        shutil.copy(made / other / part, model / part)
  note(f'{kind}: {what}')
  outcome, loaded = attempt(lambda: _load(model))
  attempt(lambda: warn_if_fresh(model))
  if outcome == ACCEPTED:
    _check(made / kind, *loaded)
  return outcome


def _check(original: Path, model: nnx.Module, tokenizer) -> None:
  found = {name: np.asarray(value[...]) for name, value in weights_of(model).items()}
  check_numbers(**{name.replace('.', '_'): array for name, array in found.items()})
  if original.name != 'older':  # which has no checksums
    expected = _expected(original)
    if found.keys() != expected.keys() or any((found[name] != expected[name]).any() for name in expected):
      raise Violation('wrong result', 'changed weights were loaded')
  if tokenizer is not None and len(tokenizer.vocabulary) > model.config.text_encoder.vocab_size:
    raise Violation('wrong result', 'more words than embeddings')
  DitSamConfig.from_dict(json.loads(json.dumps(model.config.to_dict())))
