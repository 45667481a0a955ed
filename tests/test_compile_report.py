"""The compile_report command: tables, files and refusals; with the TPU compiler if libtpu is installed."""

import importlib.util
import json
from types import SimpleNamespace

import jax
import pytest
from PIL import Image

from ditsam_jax import compile_report
from ditsam_jax.analysis import targets
from ditsam_jax.errors import UserError
from tests.devices import run_on_devices

SMALL = [
  '--config.init_from=',
  '--config.model.image_encoder.depth=1',
  '--config.model.image_encoder.global_blocks=[0]',
  '--config.model.text_encoder.depth=1',
  '--config.model.mask_decoder.depth=1',
  '--config.optimizer.name=adam',
  '--config.data.batch_size=8',
  '--config.freeze=text_encoder,mask_decoder,prompt_encoder',
]

# CPU devices stand in for a slice's chips, compiled with few optimisations to save time.
ON_CPUS = """
import os
os.environ['XLA_FLAGS'] += ' --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'
import jax
from ditsam_jax import compile_report
from ditsam_jax.analysis import targets
targets.devices_of = lambda target, memory=None: jax.devices()[:target.count]
assert compile_report.main(%r) == 0
"""


@pytest.mark.multiprocess
def test_the_training_step_in_table_json_and_picture(tmp_path):
  json_file, picture = tmp_path / 'new' / 'report.json', tmp_path / 'report.png'
  printed = run_on_devices(
    ON_CPUS
    % (
      [
        '--config=configs/ldit.py:shapes',
        '--topology=v5e:2x2',
        '--compare=topology=v5e:2x4,mesh.data=2,mesh.fsdp=4',
        f'--json={json_file}',
        f'--picture={picture}',
        *SMALL,
      ],
    ),
    8,
  )
  (report,) = json.loads(json_file.read_text())['reports'].values()
  assert report['chips'] == 8 and report['fits'] and not report['loops_of_unknown_length']
  assert report['collectives']['all-gather']['times'] > 10  # weights, over fsdp
  assert report['collectives']['all-reduce']['times'] > 0  # gradients, over data
  assert report['bytes_sent'] > report['ideal_bytes_sent']  # gradients are f32 here
  assert report['flops'] == pytest.approx(report['model_flops'] / 8, rel=0.3)
  line = next(line for line in printed.splitlines() if line.startswith('estimate: samples/s, all chips'))
  assert line.split()[-1] == f'{report["estimate"]["samples_per_second"]:.0f}'
  assert Image.open(picture).width == 1200


@pytest.mark.parametrize(
  'arguments, expected',
  [
    (['--topology=v5e:3x3'], 'slices of v5e are 1x1, 2x2'),
    (['--topology=v5e:2x2', '--compare=topology=v4:2x2x1'], 'chip of v5e, v5p, v6e'),
    (['--topology=h1000:8'], "did you mean 'h100'"),
    (['--topology=h100:8x0'], 'a number of GPUs'),
    (['--topology=a100-80:128x64'], 'up to 4,096 in all'),
    (['--topology=h100:8', '--config.data.batch_size=4'], 'multiple of 8'),
    (['--fit=h100:3'], 'a multiple of 3, the devices of h100:3'),
    (['--fit='], "topology '' is unknown"),
    (['--fit=h100:1', '--compare=dtype=float32'], '--fit finds settings by itself'),
    (['--topology=h100:1', '--cache=figures.json'], '--cache belongs to --fit'),
    (['--topology=v5e:2x2', '--compare=mesh.fdsp=4'], "did you mean 'fsdp'"),
    (['--topology=v5e:2x2', '--compare=topolgy=h100:8'], "topolgy is unknown; did you mean 'topology'"),
    (['--topology=v5e:2x2', '--compare=mesh'], r'--compare=mesh: expected FIELD=VALUE,\.\.\.'),
    (['--topology=v5e:2x2', '--compare=seed=1', '--compare=seed=1'], '--compare=seed=1 is given twice'),
    (['--fit=h100', '--config.accumulate=4'], '--fit chooses the accumulation'),
    (['--topology=v5e:2x2', '--config.mesh.fsdp=3'], 'there are 4'),
    (['--topology=v5e:1x1', '--config.accumulate=4', '--config.data.batch_size=6'], 'multiple of 4'),
  ],
)
def test_refusals(monkeypatch, arguments, expected):
  monkeypatch.setattr(targets, 'devices_of', lambda target, memory=None: target.count * jax.devices()[:1])
  with pytest.raises(UserError, match=expected):
    compile_report.main(['--config=configs/ldit.py:shapes', *arguments])


@pytest.mark.parametrize(
  'options, expected',
  [
    (['--fit=h100:1', '--json={0}'], '--json=.*: a folder or a device'),
    (['--fit=h100:1', '--cache={0}/file/x'], '--cache=.*: cannot be written .*; name another'),
    (['--topology=h100:8', '--json={0}'], '--json=.*: a folder or a device'),
    (['--topology=h100:8', '--picture={0}/file/x.png'], '--picture=.*: cannot be written .*; name another'),
    (['--topology=h100:8', '--json={0}/x.png', '--picture={0}/x.png'], 'are both .*; name two files'),
    (['--topology=h100:8', '--picture={0}/x.jpg'], 'pictures are PNG files; name it FILE.png'),
  ],
)
def test_outputs_that_cannot_be_written_are_refused_before_compiling(monkeypatch, tmp_path, options, expected):
  (tmp_path / 'file').touch()
  monkeypatch.setattr(compile_report, 'report', lambda *_: pytest.fail('it was compiled'))
  monkeypatch.setattr(compile_report.fit, 'training', lambda *_: pytest.fail('it was compiled'))
  with pytest.raises(UserError, match=expected):
    compile_report.main(['--config=ldit:shapes', *(option.format(tmp_path) for option in options)])


def test_compare_gives_the_columns_and_an_empty_one_is_the_config_as_given(monkeypatch):
  compiled = []

  def report(config, target):
    compiled.append((target.topology, config.mesh.fsdp, config.seed))
    return SimpleNamespace(compile_seconds=0)

  monkeypatch.setattr(compile_report, 'report', report)
  monkeypatch.setattr(compile_report, 'table', lambda name, reports: ' | '.join(reports))
  given = ['--config=ldit:shapes', '--topology=v5e:2x2', '--config.seed=7']
  assert compile_report.main([*given, '--compare=mesh.fsdp=4', '--compare=', '--compare=topology=h100:8']) == 0
  assert compiled == [('v5e:2x2', 4, 7), ('v5e:2x2', -1, 7), ('h100:8', -1, 7)]


@pytest.mark.parametrize('topology, extra', [('v5e:4x4', 'tpu'), ('h100:8', 'cuda12')])
def test_a_missing_compiler_is_reported_with_the_install_command(monkeypatch, topology, extra):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(UserError, match=rf"pip install 'ditsam_jax\[{extra}\]'"):
    compile_report.main(['--config=ldit:shapes', f'--topology={topology}'])


ABSTRACT = """
import json, math, resource
import jax
from ditsam_jax.config import files, lengths
from ditsam_jax.training.program import build
from ditsam_jax.parallel.sharding import make_mesh
config = files.load('ldit_vith', ['mesh.fsdp=8', 'dtype=bfloat16', 'scan=True', 'remat=block'])
config = lengths.resolve(config, lambda: 42404)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
program = build(config, config.model, make_mesh(config.mesh))
program.lower()
print(json.dumps({
  'whole': sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state)),
  'share': sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
               for leaf in jax.tree.leaves(program.state)),
  'arrays': sum(array.nbytes for array in jax.live_arrays()),
  'grown': 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)}))
"""


@pytest.mark.multiprocess
def test_vit_h_is_lowered_without_allocating_its_arrays():
  sizes = json.loads(run_on_devices(ABSTRACT, 8))
  assert sizes['whole'] > 11e9  # parameters, their average and two moments, float32
  assert sizes['share'] == pytest.approx(sizes['whole'] / 8, rel=0.05)
  assert sizes['arrays'] < 1e6 and sizes['grown'] < 1e9


# The real compiler: a matrix product whose weights are all-gathered and whose gradient is reduce-scattered.
ON_TPU = """
import json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec as P
from ditsam_jax.analysis import targets
from ditsam_jax.analysis.collectives import collectives
from ditsam_jax.analysis.hlo import Module
from ditsam_jax.analysis.operations import operations
mesh = jax.make_mesh((4,), ('x',), devices=targets.devices_of(targets.parse_topology('v5e:2x2')), axis_types=(jax.sharding.AxisType.Auto,))
rows, everywhere = NamedSharding(mesh, P('x')), NamedSharding(mesh, P())
def step(x, weights):
  def layers(weights):
    def body(x, w):
      return jnp.tanh(x @ jax.lax.with_sharding_constraint(w, everywhere)), None
    return jax.lax.scan(jax.checkpoint(body), x, weights)[0].astype(jnp.float32).sum()
  return jax.grad(layers)(weights)
stacked = NamedSharding(mesh, P(None, 'x'))
args = (jax.ShapeDtypeStruct((4096, 512), jnp.bfloat16, sharding=rows),
        jax.ShapeDtypeStruct((6, 512, 512), jnp.bfloat16, sharding=stacked))
module = Module(jax.jit(step, out_shardings=stacked).lower(*args).compile().as_text())
kinds = {}
for c in collectives(module):
  kinds[c.kind] = kinds.get(c.kind, 0) + c.bytes
print(json.dumps([kinds, sum(o.flops * o.times for o in operations(module)), module.endless]))
"""  # noqa: E501


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is None, reason="libtpu is not installed (the extra 'tpu')")
def test_tpu_compiler_gives_the_expected_collectives_and_flops():
  kinds, flops, endless = json.loads(run_on_devices(ON_TPU, 1))
  weights = 6 * 512 * 512 * 2
  assert kinds['all-gather'] == 2 * weights * 3 / 4  # forward, and rematerialised backward
  assert sum(kinds.get(kind, 0) for kind in ('reduce-scatter', 'all-reduce')) >= weights * 3 / 4
  assert flops == 4 * 6 * 2 * 1024 * 512 * 512 and not endless  # forward, rematerialised, and two products backward
