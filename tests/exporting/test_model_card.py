"""export --model-card: metadata that huggingface_hub reads, and what the model's files say."""

import json

import pytest

from ditsam_jax import export
from ditsam_jax.errors import UserError
from ditsam_jax.exporting import model_card
from ditsam_jax.models.weights import weights_of
from ditsam_jax.storage import saved_model
from ditsam_jax.storage.bucket import upload
from tests.buckets import bucket, store  # noqa: F401
from tests.small_models import SAM, random_model

# Fixtures of tests.buckets are used by name.
# ruff: noqa: F811

hub = pytest.importorskip('huggingface_hub', reason="needs the extra 'hub'")

METRICS = {
  'split': 'val',
  'samples': 1234,
  'release': {'mIoU': 83.912, 'oIoU': 80.5, 'P@0.50': 94.25, 'P@0.55': 93.0, 'intervals': {'mIoU': [83.1, 84.7]}},
}


def card_of(folder):
  return hub.ModelCard.load(folder / 'README.md')


def exported(checkpoint, output, *flags):
  assert export.main([f'--checkpoint={checkpoint}', f'--output={output}', '--model-card', *flags]) == 0
  return card_of(output)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A run's workdir with a plain SAM and its scores."""
  folder = tmp_path_factory.mktemp('run')
  saved_model.save(
    folder / 'model', random_model(SAM), data={'dataset': 'mine'}, notes={'steps': 7}, fresh=['text_proj']
  )
  (folder / 'metrics.json').write_text(json.dumps(METRICS))
  return folder


def test_the_hub_reads_scores_data_and_licence(workdir, tmp_path):
  card = exported(workdir, tmp_path / 'little', '--license=cc-by-4.0')
  found = card.data
  assert (found.license, found.library_name, found.pipeline_tag) == ('cc-by-4.0', 'ditsam_jax', 'mask-generation')
  assert found.datasets == ['mine'] and found.model_name == 'little' and found.language is None
  assert {(r.dataset_name, r.dataset_split, r.metric_type, r.metric_value) for r in found.eval_results} == {
    ('mine', 'val', 'mean_iou', 83.912),
    ('mine', 'val', 'oIoU', 80.5),
    ('mine', 'val', 'P@0.50', 94.25),
  }
  assert '| `mine` | `val` | 1,234 | mIoU | 83.91 | 83.10 to 84.70 |' in card.text
  assert '| steps (noted) | `7` |' in card.text and 'Untrained parts: text_proj.' in card.text
  count = sum(array.size for array in weights_of(random_model(SAM)).values())
  assert f'| parameters | {count:,} |' in card.text
  config = json.loads(card.text.rpartition('```json\n')[2].partition('```')[0])
  assert config == json.loads(json.dumps(SAM.to_dict()))


def test_a_model_with_text_shows_how_to_use_it(tmp_path):
  card = exported(
    'shapes', tmp_path / 'words', '--license=other', '--license-name=mine', '--license-link=https://example.com/l'
  )
  found = card.data
  assert (found.license, found.license_name, found.license_link) == ('other', 'mine', 'https://example.com/l')
  assert (found.language, found.pipeline_tag) == ('en', 'image-segmentation') and found.eval_results is None
  assert "ditsam_jax.Segmenter('hf://OWNER/words')" in card.text and '## Scores\n\nNot recorded.' in card.text
  assert '[mine](https://example.com/l)' in card.text


def test_several_splits_and_other_files(workdir, tmp_path):
  file = tmp_path / 'metrics.json'
  splits = {split: METRICS | {'split': split, 'dataset': 'refcoco'} for split in ('testA', 'testB')}
  file.write_text(json.dumps({'checkpoint': 'x', 'dataset': 'refcoco', 'splits': splits}))
  card = exported(workdir, tmp_path / 'little', '--license=mit', f'--scores={file}')
  assert {(r.dataset_name, r.dataset_split) for r in card.data.eval_results} == {
    ('refcoco', 'testA'),
    ('refcoco', 'testB'),
  }


def test_names_from_files_cannot_break_the_card(tmp_path):
  saved_model.save(
    tmp_path / 'model', random_model(SAM), data={'dataset': 'a|b`c\n---\nlicense: mit'}, notes={'by': 'x\n# y'}
  )
  card = exported(tmp_path / 'model', tmp_path / 'out', '--license=apache-2.0')
  assert card.data.license == 'apache-2.0'
  assert '\n# y' not in card.text and '\n---\nlicense' not in card.text.partition('## Config')[0]


@pytest.mark.parametrize(
  ('flags', 'told'),
  [
    (['--model-card'], 'needs --license=ID'),
    (['--model-card', '--license=apache2'], "--license=apache2 is not one of the Hub's identifiers"),
    (['--model-card', '--license=other'], 'belong to --license=other, which needs the name'),
    (['--model-card', '--license=mit', '--license-name=x'], 'belong to --license=other'),
    (['--license=mit'], '--license belongs to --model-card; add it'),
    (['--model-card', '--license=mit', '--scores=missing.json'], 'missing.json'),
  ],
)
def test_wrong_options_are_refused_before_the_export(workdir, tmp_path, flags, told):
  with pytest.raises(UserError, match=told):
    export.main([f'--checkpoint={workdir}', f'--output={tmp_path / "out"}', *flags])
  assert not (tmp_path / 'out').exists()


def test_a_file_without_scores_is_refused_before_the_export(workdir, tmp_path):
  file = tmp_path / 'other.json'
  file.write_text('{"hello": 1}')
  flags = ['--model-card', '--license=mit', f'--scores={file}']
  with pytest.raises(UserError, match='other.json is not a metrics.json of ditsam_jax.evaluate'):
    export.main([f'--checkpoint={workdir}', f'--output={tmp_path / "out"}', *flags])
  assert not (tmp_path / 'out').exists()


def test_a_run_without_evaluation_has_no_scores(tmp_path):
  saved_model.save(tmp_path / 'model', random_model(SAM))
  (tmp_path / 'metrics.json').write_text('{"steps": 7}')
  assert '## Scores\n\nNot recorded.' in exported(tmp_path, tmp_path / 'out', '--license=mit').text


@pytest.mark.parametrize('given', ['run', 'run/model'])
def test_scores_of_a_run_in_a_bucket(bucket, workdir, given):
  upload({bucket / 'run' / path.relative_to(workdir).as_posix(): path for path in workdir.rglob('*') if path.is_file()})
  card = model_card.read(str(bucket / given), 'out', 'flax', model_card.Licence('mit'))
  assert [(scores.dataset, scores.samples) for scores in card.scores] == [('mine', 1234)]


@pytest.mark.parametrize('content', ['[]', '{"split": "val", "release": {"mIoU": "high"}}', '{"splits": 3}'])
def test_other_files_are_not_scores(tmp_path, content):
  (tmp_path / 'metrics.json').write_text(content)
  with pytest.raises(UserError, match=r'is not a metrics.json of ditsam_jax.evaluate'):
    model_card.read_scores(tmp_path / 'metrics.json', 'mine')
