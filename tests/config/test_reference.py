"""docs/config.md matches the declarations."""

from pathlib import Path

from ditsam_jax import fields
from ditsam_jax.config.reference import page
from ditsam_jax.config.run import RunConfig

PAGE = Path(__file__).parents[2] / 'docs' / 'config.md'


def test_the_page_is_up_to_date():
  assert PAGE.read_text() == page(), 'run python -m ditsam_jax.config.reference > docs/config.md'


def test_every_field_is_documented():
  for path, field in fields.walk(RunConfig):
    assert field.meaning and (field.meaning[-1] != '.' or field.meaning.endswith('...')), path
    if not field.group:
      assert f'| `{path.split(".")[-1]}` | {field.kind.expected} |' in PAGE.read_text()
      assert field.kind.accepts(field.default), path
