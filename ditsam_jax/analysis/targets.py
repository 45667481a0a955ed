"""What a program is compiled for: TPU slices and GPU hosts, on a machine that has neither.

A topology is 'v5e:4x4' (a TPU slice), 'h100:8' (eight GPUs in one host; 'h100' is one) or 'h100:8x4' (four such hosts).
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator
from typing import Any

import jax

from ditsam_jax.analysis.chips import CHIPS, Chip, Silicon
from ditsam_jax.errors import UserError
from ditsam_jax.fields import did_you_mean
from ditsam_jax.ops.attention import cudnn

MOST_GPUS = 4096
AMPLE = 1 << 40  # bytes of a card for which the compiler never has to save memory

# Makes libtpu work without a TPU: no query to the metadata server, no lock, no warnings.
_NO_TPU = {
  'TPU_SKIP_MDS_QUERY': '1',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-4',
  'TF_CPP_MIN_LOG_LEVEL': '2',
}


@dataclasses.dataclass(frozen=True)
class Target:
  """Chips to compile for."""

  topology: str
  chip: Chip
  count: int
  per_host: int | None = None  # GPUs in a host, connected by NVLink or PCI Express; None for TPUs

  @property
  def platform(self) -> str:
    """JAX's name of the platform: 'tpu' or 'cuda'."""
    return 'cuda' if self.chip.silicon else 'tpu'

  @property
  def hosts(self) -> int:
    """Number of hosts."""
    per_host = self.per_host or self.chip.most_per_host
    return math.ceil(self.count / per_host)

  @property
  def network_bandwidth(self) -> float | None:
    """Bytes/s between hosts per GPU; None for TPUs, whose links connect all chips."""
    return None if self.per_host is None else self.chip.network_bandwidth(self.per_host)

  @property
  def options(self) -> dict[str, Any]:
    """Compiler options. XLA chooses tile sizes of its own GPU products by timing them, which needs the card."""
    return {'xla_gpu_enable_triton_gemm': False} if self.chip.silicon else {}

  @property
  def compiler(self) -> str:
    """What programs are compiled for; equal for chips that can share a program (a100-40 and a100-80)."""
    return f'sm_{"".join(map(str, self.chip.silicon.capability))}' if self.chip.silicon else self.chip.name


def parse_topology(topology: str) -> Target:
  """Parses a topology. Raises UserError, listing known ones."""
  name, colon, shape = topology.partition(':')
  chip = CHIPS.get(name)
  if chip is None:
    sizes = [known for known in CHIPS if known.startswith(f'{name}-')]
    hint = f'did you mean {" or ".join(map(repr, sizes))}? ' if sizes else did_you_mean(name, CHIPS)
    raise UserError(
      f'topology {topology!r} is unknown; {hint}expected CHIP:SHAPE with a chip of '
      f'{", ".join(CHIPS)}, such as v5e:4x4 (a TPU slice), h100:8 (GPUs of one host) or h100:8x4 (four such hosts)'
    )
  if chip.silicon is None:
    if shape not in chip.slices:
      raise UserError(f'topology {topology!r} is unknown; slices of {name} are {", ".join(chip.slices)}')
    return Target(topology, chip, math.prod(map(int, shape.split('x'))))
  if not colon:
    topology, shape = f'{name}:1', '1'
  found = re.fullmatch(r'([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?', shape)
  count = int(found[1]) * int(found[2] or 1) if found else 0
  if not found or count > MOST_GPUS:
    raise UserError(
      f'topology {topology!r} is unknown; expected a number of GPUs ({name}:8), or GPUs per host x hosts ({name}:8x4), '
      f'up to {MOST_GPUS:,} in all'
    )
  return Target(topology, chip, count, int(found[1]))


def devices_of(target: Target, memory: int | None = None) -> list[Any]:
  """Returns the devices to compile for; they need not be there.

  Args:
    target: the chips.
    memory: bytes per GPU, by default the card's. XLA recomputes values when it runs short.

  Raises:
    UserError: the compiler is not installed.
  """
  from jax.experimental import topologies

  if target.chip.silicon is None:
    if importlib.util.find_spec('libtpu') is None:
      raise UserError("the TPU compiler (libtpu) is not installed; run: pip install 'ditsam_jax[tpu]'")
    for name, value in _NO_TPU.items():
      os.environ.setdefault(name, value)
    bounds = {'chips_per_host_bounds': (1, 1, 1)} if target.topology.endswith(':1x1') else {}
    return list(topologies.get_topology_desc(target.topology, platform='tpu', **bounds).devices)
  if not any(importlib.util.find_spec(f'jax_cuda{version}_plugin') for version in (12, 13)):
    raise UserError(
      "the CUDA compiler (JAX's CUDA plugin) is not installed; run: "
      "pip install 'ditsam_jax[cuda12]' (or 'ditsam_jax[cuda13]'); it needs no GPU"
    )
  jax.devices()  # registers the CUDA plugin beside the CPU
  per_host = target.per_host or 1
  return list(
    topologies.get_topology_desc(
      platform='cuda',
      topology_name='',
      target_config=_description(target.chip.silicon, target.chip, memory or target.chip.hbm_bytes),
      topology=f'1x{target.count // per_host}x{per_host}',  # slices x hosts x GPUs
    ).devices
  )


@contextlib.contextmanager
def lowering(target: Target) -> Iterator[None]:
  """Inside, attention is chosen and lowered for the target's GPU, not for this machine's.

  JAX asks the local GPU which shapes cuDNN supports, even when it lowers for another; there is no public way around it.
  """
  if target.chip.silicon is None:
    yield
    return
  from jax._src.cudnn import fused_attention_stablehlo as fused

  capability = target.chip.silicon.capability
  replaced = {
    'check_compute_capability': lambda least: capability >= _version(least),
    'is_cuda_compute_capability_equal': lambda other: capability == _version(other),
  }
  originals = {name: getattr(fused, name) for name in replaced}
  jax.clear_caches()  # traces depend on the GPU
  with cudnn.assumed(capability):
    for name, function in replaced.items():
      setattr(fused, name, function)
    try:
      yield
    finally:
      for name, function in originals.items():
        setattr(fused, name, function)
      jax.clear_caches()


def _version(text: str) -> tuple[int, ...]:
  return tuple(int(part) for part in text.split('.'))


def _description(silicon: Silicon, chip: Chip, memory: int) -> str:
  """A card as XLA's GpuTargetConfigProto, in text."""
  major, minor = silicon.capability
  return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {silicon.threads}
  shared_memory_per_block: 49152 shared_memory_per_core: {silicon.shared}
  shared_memory_per_block_optin: {silicon.shared_block}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  core_count: {silicon.cores} fpus_per_core: {silicon.lanes} clock_rate_ghz: {silicon.clock}
  l2_cache_size: {silicon.l2} memory_bandwidth: {int(chip.hbm_bandwidth)} device_memory_size: {memory}
  device_vendor: "NVIDIA Corporation" name: "{chip.name}"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{chip.name}"
"""
