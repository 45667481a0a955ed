"""A step that does not fit is refused before it runs, with changes that fit according to the compiler."""

import ctypes
import dataclasses
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from ditsam_jax.config import lengths, recipe
from ditsam_jax.errors import UserError
from ditsam_jax.parallel import sharding
from ditsam_jax.training import memory
from ditsam_jax.training.program import build
from tests.small_models import small_config


@pytest.fixture(scope='module')
def config():
  """Returns the config of a one-block SAM, whose step compiles in seconds."""
  plain = recipe('refcoco')
  plain.update({'scan': False, 'task': 'prompts', 'rounds': 1})
  plain.model.text_encoder, plain.model.fusion = None, 'none'
  plain.data.batch_size = 8
  plain.optimizer.update(warmup_steps=0)
  small = small_config(fusion='none', text_encoder=None)
  encoder = dataclasses.replace(small.image_encoder, depth=1, global_blocks=(0,))
  model = dataclasses.replace(small, image_encoder=encoder)
  return dataclasses.replace(lengths.resolve(plain, lambda: 80), model=model)


@pytest.fixture(scope='module')
def mesh(config):
  return sharding.make_mesh(config.mesh, jax.devices()[:1])


@pytest.fixture(scope='module')
def program(config, mesh):
  return build(config, config.model, mesh)


@pytest.mark.slow
def test_a_step_that_fits_runs_and_one_that_does_not_is_refused_with_a_change_that_fits(
  program, config, mesh, monkeypatch, capfd
):
  """Compares the sizes of both steps with the compiler's."""
  monkeypatch.setenv(memory.VARIABLE, '1GiB')
  ready = memory.compiled(program, config)
  needed = float(re.search(r'a step needs ([\d.]+) MiB of 1.00 GiB on each device', capfd.readouterr().err)[1])
  state, _ = ready.initial_state()
  batch = {name: np.ones(array.shape, array.dtype) for name, array in ready.batch.items()}
  state, metrics = ready.step(state, ready.assemble(batch))
  assert int(state.step) == 1 and np.isfinite(float(metrics['loss']))

  fewer = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=1))
  stats = build(fewer, fewer.model, mesh).compiled()[1].memory_analysis()
  offered = stats.argument_size_in_bytes + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
  offered += stats.output_size_in_bytes - stats.alias_size_in_bytes
  change = memory._Change((('data.batch_size', 1),))
  monkeypatch.setattr(memory, '_changes', lambda *_, **__: [lambda parts: change])
  monkeypatch.setenv(memory.VARIABLE, str(offered))
  with pytest.raises(UserError) as error:
    memory.compiled(program, config)
  assert re.sub(r'[\d.]+ MiB more', '# more', str(error.value)) == (
    f'a training step needs {needed:.1f} MiB of memory on each device, # more than the {offered / MIB:.1f} MiB there; '
    f'this would fit: --config.data.batch_size=1 ({offered / MIB:.1f} MiB)'
  )


@pytest.mark.slow
def test_a_run_that_may_choose_recomputes_more_until_its_step_fits(program, config, monkeypatch, capfd):
  sizes = iter([3 * 2**30, 2**30])
  monkeypatch.setattr(memory, 'remats', lambda *_: ('none', 'block', 'never reached'))
  monkeypatch.setattr(memory, '_bytes', lambda step: next(sizes))
  monkeypatch.setenv(memory.VARIABLE, '2GiB')
  memory.compiled(program, config)
  told = capfd.readouterr().err
  assert 'that needs 3.00 GiB of 2.00 GiB; recomputing more (remat block) ...' in told
  assert 'a step needs 1.00 GiB of 2.00 GiB on each device (remat block)' in told


MIB = 2**20


@pytest.fixture
def priced(monkeypatch):
  """Assigns artificial costs to steps: 40 MiB of state, 2 of gradient sums, 60 of activations."""

  def cost(config, _):
    activations = 60 * config.data.batch_size / 8 / config.accumulate
    activations *= {'auto': 1, 'none': 1, 'block': 0.4}[config.remat] * (0.5 if config.dtype == 'bfloat16' else 1)
    return (40 + 2 * (config.accumulate > 1) - 24 * ('image_encoder' in config.freeze) + activations) * MIB

  monkeypatch.setattr(memory, '_needed', cost)


def advice(config, mesh, available, needed=100):
  return memory._advice(needed * MIB, available * MIB, config, mesh)


def test_every_single_change_is_tried_and_fitting_ones_are_listed_first(priced, config, mesh, capfd):
  """Sums of gradients take memory too, so fewer rows at once help less than a smaller batch."""
  assert advice(config, mesh, 71) == (
    'this would fit: --config.remat=block (64.0 MiB) or --config.accumulate=4 (57.0 MiB) or --config.dtype=bfloat16 '
    '(70.0 MiB) or --config.data.batch_size=4 (70.0 MiB); not enough: --config.freeze=image_encoder (76.0 MiB)'
  )
  told = [line.strip() for line in capfd.readouterr().err.splitlines()]
  assert told[0] == 'compiling with --config.remat=block (1 of 5) ...' and told[-1].endswith('=4 (5 of 5) ...')


def test_settings_already_in_use_are_not_offered(priced, config, mesh):
  frozen = dataclasses.replace(config, remat='block', dtype='bfloat16', freeze='mask_decoder', accumulate=8)
  assert advice(frozen, mesh, 40, needed=43.5) == (
    'this would fit: --config.freeze=mask_decoder,image_encoder (19.5 MiB)'
  )


@pytest.mark.parametrize(
  'available, changes',
  [
    (45, '--config.remat=block --config.dtype=bfloat16 --config.accumulate=8 (43.5 MiB)'),
    (43, '--config.remat=block --config.dtype=bfloat16 --config.freeze=image_encoder --config.data.batch_size=1 (17.5'),
  ],
)
def test_combinations_are_tried_if_no_single_change_is_enough(priced, config, mesh, available, changes):
  message = advice(config, mesh, available)
  assert message.startswith('no single change is enough (--config.remat=block (64.0 MiB), --config.accumulate=8 (')
  assert f'; this would fit: {changes}' in message


def test_the_memory_of_all_changes_together_is_named_if_nothing_is_enough(priced, config, mesh):
  assert re.match(
    r'even --config.remat=block .*batch_size=1 needs 17.5 MiB; use a device with', advice(config, mesh, 10)
  )


def test_no_part_of_a_batch_is_too_small_for_the_shares_of_first_prompts(priced, config, mesh):
  """A quarter has no sentence, so 4 rows are the fewest."""
  interactive = dataclasses.replace(config, task='interactive')
  assert '; not enough: --config.accumulate=2 (72.0 MiB), ' in advice(interactive, mesh, 71)
  assert '--config.data.batch_size=4 needs 22.0 MiB; ' in advice(interactive, mesh, 10)


def test_what_compiles_is_offered_if_the_memory_of_the_devices_is_unknown(priced, program, config, monkeypatch):
  def compile_too_much(program):
    raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED')

  monkeypatch.setattr(type(program), 'compiled', compile_too_much)
  monkeypatch.setattr(memory, 'device_memory', lambda mesh: None)
  with pytest.raises(UserError) as error:
    memory.compiled(program, config)
  assert str(error.value).startswith(
    'a training step needs more memory than each device has; this would fit: --config.remat=block (64.0 MiB) or '
  )


@pytest.mark.parametrize('message', ['RESOURCE_EXHAUSTED: Out of memory allocating 17 bytes.', 'CUDA: out of memory'])
def test_running_out_of_memory_later_gives_the_same_advice(priced, program, config, message):
  with pytest.raises(UserError) as error, memory.explained(program, config):
    raise jax.errors.JaxRuntimeError(message)
  assert str(error.value).startswith(f'a device ran out of memory ({message}); a step alone needs 100.0 MiB of ')
  assert '; this would fit: --config.remat=block (64.0 MiB) or ' in str(error.value)


def test_the_advice_is_for_the_recomputation_that_was_chosen(priced, program, config, monkeypatch):
  """Of 100 and 64 MiB, the second fits."""
  monkeypatch.setattr(memory, 'remats', lambda *_: ('none', 'block'))
  monkeypatch.setenv(memory.VARIABLE, '90MiB')
  with pytest.raises(UserError, match='a step alone needs 64.0 MiB of 90.0 MiB'), memory.explained(program, config):
    raise jax.errors.JaxRuntimeError('CUDA: out of memory')


def test_other_runtime_errors_are_not_converted(program, config):
  with pytest.raises(jax.errors.JaxRuntimeError, match='INTERNAL'), memory.explained(program, config):
    raise jax.errors.JaxRuntimeError('INTERNAL: something else')


@pytest.mark.parametrize(
  'text, size', [('1000', 1000), ('16GiB', 16 * 2**30), ('1.5 gb', 1_500_000_000), ('2mib', 2 * 2**20)]
)
def test_the_memory_of_a_device_can_be_set(mesh, monkeypatch, text, size):
  monkeypatch.setenv(memory.VARIABLE, text)
  assert memory.device_memory(mesh) == size


@pytest.mark.parametrize('text', ['much', '-1', '0', '16 GiBi', '1e9'])
def test_invalid_sizes_are_refused(mesh, monkeypatch, text):
  monkeypatch.setenv(memory.VARIABLE, text)
  with pytest.raises(UserError, match=f"{memory.VARIABLE} is '{text}'; expected bytes"):
    memory.device_memory(mesh)


def test_cpus_share_the_memory_of_the_machine_or_container(mesh, monkeypatch, tmp_path):
  whole = memory.device_memory(mesh) * jax.local_device_count()
  assert 2**28 < whole <= 2**50
  for content, found in (('123456789\n', 123456789), ('max\n', None), (str(2**62), None)):
    (tmp_path / 'memory.max').write_text(content)
    monkeypatch.setattr(memory, '_CGROUPS', (str(tmp_path / 'memory.max'), str(tmp_path / 'absent')))
    here = memory.device_memory(mesh) * jax.local_device_count()
    assert abs(here - found) < 99 if found else here >= whole


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='only glibc keeps freed memory')
def test_freed_memory_returns_to_the_system():
  """Many small blocks below one that stays: glibc would not return them by itself."""
  code = """
import resource, sys
from ditsam_jax.training import memory

def resident():
  with open('/proc/self/statm') as file:
    return int(file.read().split()[1]) * resource.getpagesize()

before = resident()
blocks = [bytes([1]) * 60_000 for _ in range(3000)]
blocks = blocks[-1:]
kept = resident() - before
memory.return_freed()
print(kept, resident() - before)
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
  kept, rest = map(int, done.stdout.split())
  assert kept > 150e6 and rest < 20e6
