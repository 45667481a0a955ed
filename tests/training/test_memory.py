"""A step that does not fit is refused before it runs, with changes that fit by what the compiler says of them."""

import dataclasses
import re

import jax
import pytest

from ditsam_jax.config import lengths, recipe
from ditsam_jax.errors import UserError
from ditsam_jax.parallel import sharding
from ditsam_jax.training import memory
from ditsam_jax.training.program import build
from tests.small_models import random_batch, random_model, small_config


@pytest.fixture(scope='module')
def config():
  plain = recipe('refcoco')
  plain.update({'scan': False})
  plain.data.batch_size = 8
  plain.optimizer.update(warmup_steps=0)
  model = small_config(fusion='none')
  return dataclasses.replace(lengths.resolve(plain, lambda: 80), model=model)


@pytest.fixture(scope='module')
def mesh(config):
  return sharding.make_mesh(config.mesh, jax.devices()[:1])


@pytest.fixture(scope='module')
def program(config, mesh):
  return build(config, config.model, mesh)


@pytest.fixture(scope='module')
def needed(config, mesh):
  """Of the whole step, by the compiler."""
  return memory._needed(config, mesh)


def offered(message):
  """The changes of a message that would fit, and what they need in MiB."""
  fitting = message.split('would fit: ')[1].split('; not enough')[0]
  return {flags: float(size) for flags, size in re.findall(r'(--\S+) \(([\d.]+) MiB\)', fitting)}


def applied(flag, config):
  name, _, value = flag.removeprefix('--config.').partition('=')
  value = int(value) if value.isdigit() else value
  if name == 'data.batch_size':
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=value))
  return dataclasses.replace(config, **{name: value})


@pytest.mark.slow
def test_what_is_offered_fits_and_says_by_how_much_the_step_does_not(program, config, mesh, needed, monkeypatch, capfd):
  limit = int(0.7 * needed)
  monkeypatch.setenv(memory.VARIABLE, str(limit))
  with pytest.raises(UserError) as error:
    memory.compiled(program, config)
  message = str(error.value)
  assert '\n' not in message
  assert message.startswith(f'a training step needs {needed / 2**20:.1f} MiB of memory on each device, ')
  assert f'{(needed - limit) / 2**20:.1f} MiB more than the {limit / 2**20:.1f} MiB there' in message
  changes = offered(message)
  assert {flag.partition('=')[0] for flag in changes} >= {'--config.accumulate', '--config.data.batch_size'}
  for flag, size in changes.items():
    found = memory._needed(applied(flag, config), mesh)
    assert found <= limit and found / 2**20 == pytest.approx(size, abs=0.1), flag
  told = capfd.readouterr().err
  tried = re.findall(r'compiling with (--\S+) \((\d) of (\d)\)', told)
  assert [number for _, number, _ in tried] == ['1', '2', '3', '4', '5'] and {most for _, _, most in tried} == {'5'}


@pytest.mark.slow
def test_where_nothing_is_enough_it_says_what_all_together_would_need(program, config, monkeypatch):
  monkeypatch.setenv(memory.VARIABLE, '100KB')
  with pytest.raises(
    UserError, match=r'even --config\.remat=block --config\.accumulate=8 --config\.dtype=bfloat16 needs'
  ):
    memory.compiled(program, config)


@pytest.mark.slow
def test_a_step_that_fits_runs(program, config, needed, monkeypatch, tmp_path, capfd):
  from ditsam_jax.storage import saved_model

  monkeypatch.setenv(memory.VARIABLE, str(needed))
  ready = memory.compiled(program, config)
  assert f'a step needs {needed / 2**20:.1f} MiB of {needed / 2**20:.1f} MiB' in capfd.readouterr().err
  start = str(saved_model.save(tmp_path / 'start', random_model(config.model)))
  losses = []
  for one in (ready, program):  # compiled ahead of time, and when it is called
    state, _ = one.initial_state(start)
    for seed in range(2):
      state, metrics = one.step(state, one.assemble(random_batch(8, seed)))
    losses.append((float(metrics['loss']), int(state.step)))
  assert losses[0] == losses[1] and losses[0][1] == 2


@pytest.mark.parametrize('message', ['RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes.', 'CUDA: out of memory'])
def test_running_out_later_ends_in_the_same_advice(program, config, mesh, monkeypatch, message):
  sizes = {'remat': 50.0, 'dtype': 90.0, 'accumulate': 120.0}

  def known(changed, _):
    return next((size for name, size in sizes.items() if getattr(changed, name) != getattr(config, name)), 100.0)

  monkeypatch.setattr(memory, '_needed', lambda changed, on: known(changed, on) * 2**20)
  with pytest.raises(UserError) as error, memory.explained(program, config):
    raise jax.errors.JaxRuntimeError(message)
  assert str(error.value).startswith(f'a device ran out of memory ({message}); a step alone needs 100.0 MiB of ')
  assert '; this would fit: --config.remat=block (50.0 MiB); not enough: --config.accumulate=' in str(error.value)


def test_other_errors_of_the_runtime_pass(program, config):
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.explained(program, config):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


@pytest.mark.parametrize(
  'text, size', [('1000', 1000), ('16GiB', 16 * 2**30), ('1.5 gb', 1_500_000_000), ('2mib', 2 * 2**20)]
)
def test_the_memory_of_a_device_can_be_given(mesh, monkeypatch, text, size):
  monkeypatch.setenv(memory.VARIABLE, text)
  assert memory.device_memory(mesh) == size


@pytest.mark.parametrize('text', ['much', '-1', '0', '16 GiBi', '1e9'])
def test_a_size_that_is_none_is_refused(mesh, monkeypatch, text):
  monkeypatch.setenv(memory.VARIABLE, text)
  with pytest.raises(UserError, match=f"{memory.VARIABLE} is '{text}'; expected bytes"):
    memory.device_memory(mesh)


def test_cpus_share_the_memory_of_the_machine_or_its_container(mesh, monkeypatch, tmp_path):
  whole = memory.device_memory(mesh) * jax.local_device_count()
  assert 2**28 < whole <= 2**50
  for content, found in (('123456789\n', 123456789), ('max\n', None), (str(2**62), None)):
    (tmp_path / 'memory.max').write_text(content)
    monkeypatch.setattr(memory, '_CGROUPS', (str(tmp_path / 'memory.max'), str(tmp_path / 'absent')))
    here = memory.device_memory(mesh) * jax.local_device_count()
    assert abs(here - found) < 99 if found else here >= whole
