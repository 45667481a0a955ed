"""Published peaks of TPU chips and NVIDIA GPUs.

TPUs: the Cloud TPU documentation, pages "TPU v5e", "TPU v5p" and "TPU v6e" (cloud.google.com/tpu/docs/v5e, v5p, v6e).
Their tables of key specifications give the peak compute per chip (bf16), HBM capacity and bandwidth per chip, and
bidirectional inter-chip interconnect (ICI) bandwidth per chip. The same pages list the slices.

GPUs: NVIDIA's data sheets "A100 Tensor Core GPU" (SXM), "H100 Tensor Core GPU" (SXM), "DGX B200", "L4 Tensor Core GPU"
and "T4 Tensor Core GPU", and the white paper "NVIDIA Ada GPU Architecture" (RTX 4090). Peaks are those without
sparsity: where a sheet gives the sparse one, half of it. Link bandwidth is half of the bidirectional one of NVLink, or
of PCI Express where there is no NVLink. Multiprocessors, caches and clocks are from the architectures' white papers,
the limits of a multiprocessor from the table of technical specifications per compute capability in the CUDA C++
Programming Guide.

Networks between GPU hosts are assumptions: in DGX systems, a network adapter per GPU (400 Gb/s with H100 and B200,
200 Gb/s with A100, as their data sheets say); for other GPUs, 100 Gb/s per host.

Rates use 1 GB = 1e9 bytes.
"""

import dataclasses

_SQUARE = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
GBIT = 1e9 / 8


@dataclasses.dataclass(frozen=True)
class Silicon:
  """What the GPU compiler needs to know besides the peaks."""

  capability: tuple[int, int]  # compute capability
  cores: int  # streaming multiprocessors
  lanes: int  # f32 units per multiprocessor
  threads: int  # resident per multiprocessor
  shared: int  # bytes of shared memory per multiprocessor
  shared_block: int  # bytes of it that one thread block can get
  l2: int  # bytes
  clock: float  # GHz, boost


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published peaks of one chip."""

  name: str
  flops: float  # bf16 FLOP/s; without bf16 units, f32 FLOP/s
  hbm_bytes: int
  hbm_bandwidth: float  # bytes/s
  ici_bandwidth: float  # bytes/s sent over all links: half of the published bidirectional bandwidth
  slices: tuple[str, ...] = ()  # topologies on offer; any number of GPUs
  most_per_host: int = 8  # TPU chips of the largest slice that one host has
  f32_flops: float | None = None  # of products of f32 arrays at JAX's default precision, if slower: TF32 on GPUs
  adapter: float = 0  # bytes/s of the network per GPU; 0 where hosts share the links
  host_network: float = 0  # bytes/s of the network per host, shared by its GPUs
  silicon: Silicon | None = None  # of GPUs
  bf16: bool = True  # has bf16 units

  @property
  def usable_bytes(self) -> int:
    """Bytes for a program: all of a TPU's, nine tenths of a GPU's.

    The rest of a GPU is for CUDA's context, libraries and NCCL's buffers. JAX reserves three quarters by default;
    XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 changes that.
    """
    return self.hbm_bytes if self.silicon is None else self.hbm_bytes * 9 // 10

  def network_bandwidth(self, per_host: int) -> float:
    """Bytes/s that one GPU can send to other hosts when all GPUs of its host send."""
    return self.adapter or self.host_network / per_host


_TPUS = (
  Chip('v5e', 197e12, 16 << 30, 819e9, 200e9, _SQUARE),
  Chip(
    'v5p',
    459e12,
    95 << 30,
    2765e9,
    600e9,
    ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16'),
    most_per_host=4,
  ),
  Chip('v6e', 918e12, 32 << 30, 1638e9, 400e9, _SQUARE),
)

_AMPERE = Silicon((8, 0), 108, 64, 2048, 164 << 10, 163 << 10, 40 << 20, 1.41)
_KIB = 1 << 10

# fmt: off
_GPUS = (
  Chip('a100-40', 312e12, 40 * 10**9, 1555e9, 300e9, f32_flops=156e12, adapter=200 * GBIT, silicon=_AMPERE),
  Chip('a100-80', 312e12, 80 * 10**9, 2039e9, 300e9, f32_flops=156e12, adapter=200 * GBIT, silicon=_AMPERE),
  Chip('h100', 989e12, 80 * 10**9, 3350e9, 450e9, f32_flops=494.5e12, adapter=400 * GBIT,
       silicon=Silicon((9, 0), 132, 128, 2048, 228 * _KIB, 227 * _KIB, 50 << 20, 1.98)),
  Chip('b200', 2250e12, 180 * 10**9, 8000e9, 900e9, f32_flops=1125e12, adapter=400 * GBIT,
       silicon=Silicon((10, 0), 148, 128, 2048, 228 * _KIB, 227 * _KIB, 126 << 20, 1.965)),
  Chip('l4', 121e12, 24 * 10**9, 300e9, 32e9, f32_flops=60e12, host_network=100 * GBIT,
       silicon=Silicon((8, 9), 58, 128, 1536, 100 * _KIB, 99 * _KIB, 48 << 20, 2.04)),
  Chip('t4', 8.1e12, 16 * 10**9, 300e9, 16e9, f32_flops=8.1e12, host_network=100 * GBIT, bf16=False,
       silicon=Silicon((7, 5), 40, 64, 1024, 64 * _KIB, 64 * _KIB, 4 << 20, 1.59)),
  Chip('rtx4090', 165.2e12, 24 * 10**9, 1008e9, 32e9, f32_flops=82.6e12, host_network=100 * GBIT,
       silicon=Silicon((8, 9), 128, 128, 1536, 100 * _KIB, 99 * _KIB, 72 << 20, 2.52)),
)
# fmt: on

CHIPS = {chip.name: chip for chip in (*_TPUS, *_GPUS)}
