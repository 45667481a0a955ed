"""Reads PyTorch files of all formats in names.FORMATS as tensors by the release's names. Runs no code from files."""

import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ditsam_jax.convert import names
from ditsam_jax.errors import UserError
from ditsam_jax.storage.files import open_regular, read_json
from ditsam_jax.terminal import listed, printable

WEIGHT_FILES = (
  'model.safetensors',
  'model.safetensors.index.json',
  'pytorch_model.bin',
  'pytorch_model.bin.index.json',
)
KNOWN = ', '.join(f'{kind.title} ({kind.marks[0]}*)' for kind in names.FORMATS.values())
_OPTIMISER_STATES = ('optimizer', 'scheduler', 'lr_scheduler')  # not converted
_ZIP = b'PK\x03\x04'
_MOST_WEIGHTS = 2**40  # bytes
_MOST_INDEX = 2**26
_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Source(NamedTuple):
  """A checkpoint, with tensors by the release's names."""

  format: str  # a key of names.FORMATS
  tensors: dict[str, torch.Tensor]
  spelled: dict[str, str]  # names in the file
  leftovers: dict[str, torch.Tensor]  # tensors that the original code never uses
  problems: dict[str, str]  # one line per unusable tensor, by the release's name if there is one
  prefix: str  # 'module.' if all names have this prefix
  extra: dict[str, int | float]  # numbers stored with the weights: epoch, lr
  path: Path  # the file or folder

  @property
  def folder(self) -> Path:
    """The folder of the weights, which may also contain a vocabulary or a config."""
    return self.path if self.path.is_dir() else self.path.parent


def read(path: Path) -> Source:
  """Reads a file, or a Hugging Face folder.

  Raises:
    UserError: the file is missing, truncated, empty, not a known model's checkpoint, or a pickle that could run code.
  """
  content = _read_folder(path) if path.is_dir() else _read_file(path)
  content, extra = _unwrapped(content, path)
  prefix = 'module.' if content and all(name.startswith('module.') for name in content) else ''
  content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
  source = next(
    (key for key, kind in names.FORMATS.items() if any(name.startswith(kind.marks) for name in content)), None
  )
  if source is None:
    raise UserError(
      f'{printable(path)} holds {len(content)} tensors of no known model ({listed(content, 3)}); known are {KNOWN}'
    )
  tensors, spelled, leftovers, problems = {}, {}, {}, {}
  for name, tensor in content.items():
    target = names.renamed(name, source)
    leftover = names.leftover(name, source)
    if leftover == '':
      continue
    if target is None and leftover is None:
      problems[name] = f'{printable(name)} is unknown'
    elif not _is_plain(tensor) or leftover is None and tensor.dtype not in _TYPES:
      kind = _type_name(tensor.dtype) if _is_plain(tensor) else f'a {tensor.layout} {tensor.device.type} tensor'
      problems[target or name] = f'{printable(name)} holds {kind}, expected one of {", ".join(map(_type_name, _TYPES))}'
    elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
      problems[target or name] = f'{printable(name)} is {tuple(tensor.shape)}, more than the file holds numbers for'
    elif leftover is not None:
      leftovers[leftover] = tensor
    elif target in tensors and not _same_bits(tensors[target], tensor):
      problems[name] = f'{printable(name)} and {printable(spelled[target])} are the same parameter, but differ'
    else:
      tensors[target], spelled[target] = tensor, name
  return Source(source, tensors, spelled, leftovers, problems, prefix, extra, path)


def _is_plain(tensor: torch.Tensor) -> bool:
  """Whether a tensor is a dense array in CPU memory, of a type that NumPy supports."""
  return (
    tensor.layout is torch.strided
    and tensor.device.type == 'cpu'
    and not tensor.is_quantized
    and tensor.dtype in (*_TYPES, torch.int64, torch.int32, torch.bool)
    and tensor.numel() > 0
  )


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
  return one.dtype == other.dtype and one.shape == other.shape and to_numpy(one).tobytes() == to_numpy(other).tobytes()


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
  """Converts a tensor to NumPy, bit-exactly and without a copy; bfloat16 becomes ml_dtypes.bfloat16."""
  tensor = tensor.detach().resolve_neg()
  if tensor.dtype == torch.bfloat16:
    import ml_dtypes

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
  return tensor.numpy()


def from_numpy(array: np.ndarray) -> torch.Tensor:
  """The inverse of `to_numpy`."""
  array = np.array(array, order='C', copy=None)  # ascontiguousarray would add an axis to scalars
  with warnings.catch_warnings(action='ignore'):  # the array may be read-only, and is never written to
    if array.dtype.name == 'bfloat16':
      return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def release_tensors(weights: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
  """Converts our weights, by dotted path, to the release's tensors."""
  tensors = {}
  for path, array in weights.items():
    entry = names.entry(path)
    tensors |= {name: from_numpy(part) for name, part in zip(entry.names, entry.save(np.asarray(array)))}
  return tensors


def _type_name(dtype: torch.dtype) -> str:
  return str(dtype).removeprefix('torch.')


def _read_folder(folder: Path) -> dict:
  """Reads a Hugging Face folder: a single file, or shards with an index."""
  file = next((folder / name for name in WEIGHT_FILES if (folder / name).exists()), None)
  if file is None:
    raise UserError(
      f'{printable(folder)} holds none of {", ".join(WEIGHT_FILES)}; give a file, or a Hugging Face folder'
    )
  if file.suffix != '.json':
    return _read_file(file)
  try:
    where = read_json(file, most_bytes=_MOST_INDEX)['weight_map']
    shards = sorted(set(where.values()))
    safe = all(Path(shard).name == shard for shard in shards)
  except (UserError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f'{printable(file)} is not an index of weight files ({printable(error)}); download it again'
    ) from error
  missing = [shard for shard in shards if safe and not (folder / shard).is_file()]
  if missing or not safe:
    raise UserError(f'{printable(file)} lists files that are missing: {listed(missing or shards)}; download them')
  content = {}
  for shard in shards:
    part = _read_file(folder / shard)
    if not isinstance(part, dict):
      raise UserError(f'{printable(folder / shard)} holds {type(part).__name__}, expected a dictionary of tensors')
    twice = sorted(set(part) & set(content))
    if twice:
      raise UserError(
        f'{printable(folder / shard)} holds {printable(twice[0])}, which another part holds too; '
        f'download the folder again'
      )
    content |= part
  lost = sorted(set(where) - set(content))
  if lost:
    raise UserError(
      f'{printable(file)} lists {len(lost)} tensors that no file holds ({listed(lost, 3)}); download the folder again'
    )
  return content


def _read_file(path: Path) -> dict:
  start = _start(path)
  if not start:
    raise UserError(f'{printable(path)} is empty; download it again')
  if _is_safetensors(path, start):
    return _read_safetensors(path)
  if start.startswith(_ZIP):
    _check_sums(path)
  try:
    with warnings.catch_warnings(action='ignore'):  # warnings about formats, which errors explain better
      return _load(path)
  except pickle.UnpicklingError as error:
    wanted = next((line.strip() for line in str(error).splitlines() if 'GLOBAL' in line), '')
    if wanted:
      raise UserError(
        f'{printable(path)} is a pickle that contains more than tensors and plain values ({printable(wanted)}) and '
        f'may run code; save only its state_dict'
      ) from error
    raise UserError(f'{printable(path)} is not a PyTorch checkpoint, or is damaged; download it again') from error
  except OSError as error:
    raise UserError(f'{printable(path)} cannot be read: {error.strerror or error}') from error
  except Exception as error:  # PyTorch raises almost anything for damaged files
    reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
    raise UserError(
      f'{printable(path)} is truncated or not a PyTorch checkpoint ({printable(reason)}); download it again'
    ) from error


def _load(path: Path) -> Any:
  try:
    # Memory-mapped, so a tensor takes memory only while it is converted.
    return torch.load(path, map_location='cpu', weights_only=True, mmap=True)
  except RuntimeError as error:
    if 'mmap can only be used' not in str(error):  # files from before PyTorch 1.6 cannot be mapped
      raise
    return torch.load(path, map_location='cpu', weights_only=True)


def _start(path: Path) -> bytes:
  """Reads the first nine bytes. Raises UserError unless it is a readable regular file."""
  with open_regular(path, most_bytes=_MOST_WEIGHTS) as file:
    return file.read(9)


def _check_sums(path: Path) -> None:
  """Verifies the CRCs of a zip archive written by torch.save. Raises UserError if one does not match."""
  try:
    with zipfile.ZipFile(path) as archive:
      for entry in archive.infolist():
        if entry.compress_type != zipfile.ZIP_STORED:  # torch.load would read compressed bytes as weights
          raise UserError(
            f'{printable(path)} holds {printable(entry.filename)} compressed, which torch.save never does; unpack it'
          )
        with archive.open(entry) as file:
          while file.read(2**24):
            pass
  except UserError:
    raise
  except Exception as error:  # BadZipFile, EOFError, NotImplementedError, ...
    raise UserError(
      f'{printable(path)} is damaged or truncated ({printable(error or type(error).__name__)}); download it again'
    ) from error


def _is_safetensors(path: Path, start: bytes) -> bool:
  """Detects safetensors by content, because files get renamed: eight bytes of length, then JSON."""
  if start.startswith(_ZIP):
    return False
  return (
    path.suffix == '.safetensors' or start[8:] == b'{' and int.from_bytes(start[:8], 'little') < path.stat().st_size
  )


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
  from safetensors import SafetensorError, safe_open

  try:
    with safe_open(path, framework='pt') as file:
      return {name: file.get_tensor(name) for name in file.keys()}
  except (SafetensorError, OSError) as error:
    raise UserError(
      f'{printable(path)} is truncated or not a safetensors file ({printable(error)}); download it again'
    ) from error


def _unwrapped(content: Any, path: Path) -> tuple[dict[str, torch.Tensor], dict[str, int | float]]:
  """Returns the tensors of a state_dict, bare or wrapped in a training checkpoint, and plain numbers stored with it."""
  extra = {}
  wrapped = next(
    (key for key in ('state_dict', 'model') if isinstance(content, dict) and isinstance(content.get(key), dict)), None
  )
  if wrapped:
    extra = {
      name: content[name]
      for name in ('epoch', 'lr')
      if type(content.get(name)) in (int, float) and abs(content[name]) < 2**53
    }
    others = [
      str(key)
      for key, value in content.items()
      if key not in (wrapped, *_OPTIMISER_STATES)
      and isinstance(value, dict)
      and any(isinstance(item, torch.Tensor) for item in value.values())
    ]
    if others:
      raise UserError(
        f'{printable(path)} holds weights under {wrapped} and under {listed(others)}; save only the one you want'
      )
    content = content[wrapped]
  if not isinstance(content, dict):
    raise UserError(f'{printable(path)} holds {type(content).__name__}, expected a dictionary of tensors')
  if not content:
    raise UserError(f'{printable(path)} holds nothing, expected a dictionary of tensors')
  strange = [
    str(name) for name, value in content.items() if not isinstance(name, str) or not isinstance(value, torch.Tensor)
  ]
  if strange:
    raise UserError(
      f'{printable(path)} holds more than tensors by name ({listed(strange, 3)}); save only its state_dict'
    )
  return content, extra
