"""Commands run with the packages of their extra alone, exports included: tests/exporting compares those."""

import pytest

from tests.extras import ROOT, run_alone


@pytest.mark.multiprocess
@pytest.mark.parametrize(
  'extra, command',
  [
    ('', 'predict --checkpoint=shapes --image={scene} --text=star --output={out}'),
    ('', 'everything --checkpoint=sam_shapes --image={scene} --points-per-side=4 --output={out}'),
    ('serve', 'serve --help'),
    ('train', 'train --config=ldit:shapes --help'),
    ('train', 'evaluate --help'),
    ('convert', 'convert.torch_to_flax --help'),
    ('convert', 'export --checkpoint=sam_shapes --format=safetensors --output={out}'),
  ],
)
def test_a_command_needs_the_packages_of_its_extra_alone(extra, command, tmp_path):
  run_alone(extra, *command.format(scene=ROOT / 'docs' / 'scene.png', out=tmp_path / 'out').split())
