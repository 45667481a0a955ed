"""Connecting hosts by flags or environment, and refused flags."""

import argparse

import jax
import pytest

from ditsam_jax.errors import UserError
from ditsam_jax.parallel import distributed


@pytest.fixture
def joined(monkeypatch):
  """The arguments of all calls of jax.distributed.initialize."""
  calls = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **arguments: calls.append(arguments))
  for name in ('SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'):
    monkeypatch.delenv(name, raising=False)
  return calls


def initialise(*flags):
  parser = argparse.ArgumentParser()
  distributed.add_flags(parser)
  distributed.initialise(parser.parse_args(flags))


def test_a_single_host_does_not_connect(joined):
  initialise()
  assert joined == []


def test_hosts_connect_by_flags(joined):
  initialise('--coordinator=first:1234', '--hosts=4', '--host=2')
  [call] = joined
  assert (call['coordinator_address'], call['num_processes'], call['process_id']) == ('first:1234', 4, 2)


@pytest.mark.parametrize('name', ['SLURM_STEP_NUM_TASKS', 'OMPI_COMM_WORLD_SIZE'])
@pytest.mark.parametrize('count, joins', [('8', True), ('1', False)])
def test_hosts_connect_by_the_schedulers_environment(joined, monkeypatch, name, count, joins):
  monkeypatch.setenv(name, count)
  initialise()
  assert [sorted(call) for call in joined] == ([['heartbeat_timeout_seconds']] if joins else [])  # JAX detects the rest


def test_pod_hosts_connect_by_flag(joined):
  initialise('--hosts=pod')
  assert len(joined) == 1


@pytest.mark.parametrize(
  'flags',
  [
    ['--hosts=4'],
    ['--coordinator=first:1', '--hosts=2'],
    ['--hosts=pod', '--host=0'],
    ['--coordinator=first:1', '--hosts=2', '--host=2'],
    ['--coordinator=first:1', '--hosts=two', '--host=0'],
  ],
)
def test_inconsistent_flags_are_refused(joined, flags):
  with pytest.raises(UserError, match='expected all three'):
    initialise(*flags)
  assert not joined


def test_a_failed_connection_gives_one_line(joined, monkeypatch):
  def never(**arguments):
    raise RuntimeError('DEADLINE_EXCEEDED: nobody came\nand much more')

  monkeypatch.setattr(jax.distributed, 'initialize', never)
  with pytest.raises(UserError, match=r'could not connect \(DEADLINE_EXCEEDED: nobody came\); start the same command'):
    initialise('--coordinator=first:1', '--hosts=2', '--host=0')


@pytest.mark.parametrize('given', ['node1', 'node1:', ':1234', 'node1:http', 'node1:70000', '::1:1234', 'tcp://a:1'])
def test_a_coordinator_without_a_port_is_refused(joined, given):
  with pytest.raises(UserError, match=f'--coordinator={given}: expected HOST:PORT, such as node1:1234'):
    initialise(f'--coordinator={given}', '--hosts=2', '--host=0')
  assert not joined


@pytest.mark.parametrize('given', ['node-1.example.org:1234', '10.0.0.1:1', '[::1]:65535', '[fe80::1%eth0]:1234'])
def test_coordinators_are_names_or_addresses(joined, given):
  initialise(f'--coordinator={given}', '--hosts=2', '--host=0')
  assert joined[0]['coordinator_address'] == given
