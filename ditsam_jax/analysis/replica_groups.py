"""The devices that take part in each collective, from any notation of replica_groups in HLO."""

import re

import numpy as np


def groups(attributes: str, partitions: int) -> np.ndarray:
  """Returns the replica groups of a collective as device numbers, int [groups, devices].

  Args:
    attributes: the text after the instruction's operands.
    partitions: number of devices of the program; without groups, all of them form one.
  """
  pairs = re.search(r'source_target_pairs=\{\{([\d,{}]*)\}\}', attributes)
  if pairs:
    return np.asarray([[int(device) for device in pair.split(',')] for pair in pairs.group(1).split('},{')])
  listed = re.search(r'replica_groups=\{\{([\d,{}]*)\}\}', attributes)
  if listed:
    rows = [[int(device) for device in group.split(',')] for group in listed.group(1).split('},{')]
    return np.asarray(rows)
  iota = re.search(r'replica_groups=\[(\d+),(\d+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)?', attributes)
  if iota:
    count, size = int(iota.group(1)), int(iota.group(2))
    return _iota(iota.group(3), count * size).reshape(count, size)
  mesh = re.search(r'replica_groups=mesh\[([^\]]*)\](?:,\s*device_ids=\(([^{]*)\))?\s*\{([^}]*)\}', attributes)
  if mesh:
    return _mesh(mesh.group(1), mesh.group(2), mesh.group(3))
  return np.arange(partitions)[None]


def _iota(text: str | None, count: int) -> np.ndarray:
  """Device numbers in the order of '<=[2,4]T(1,0)' or '[2,4]T(1,0)', flat."""
  found = re.search(r'\[([\d,]+)\](?:T\(([\d,]+)\))?', text or '')
  if not found:
    return np.arange(count)
  devices = np.arange(count).reshape([int(size) for size in found.group(1).split(',')])
  return (devices.transpose([int(axis) for axis in found.group(2).split(',')]) if found.group(2) else devices).ravel()


def _mesh(sizes: str, order: str | None, axes: str) -> np.ndarray:
  """Groups along some axes of a mesh, such as sizes "'a'=2,'b'=4" and axes "'b'"; "'a':(2)4" is part of an axis."""
  lengths = {name: int(size) for name, size in re.findall(r"'?([\w]+)'?=(\d+)", sizes)}
  wanted = {
    name: (int(before or 1), int(size)) if size else (1, lengths[name])
    for name, before, size in re.findall(r"'?([a-zA-Z_]\w*)'?(?::\((\d+)\)(\d+))?", axes)
  }
  devices = _iota(order, int(np.prod(list(lengths.values()), dtype=int)))
  shape, inside, place = [], [], 0  # every axis is split into (before, size, rest)
  for name, length in lengths.items():
    before, size = wanted.get(name, (1, 1))
    shape += [before, size, length // (before * size)]
    inside.append(place + 1)
    place += 3
  outside = [axis for axis in range(place) if axis not in inside]
  count = int(np.prod([shape[axis] for axis in inside], dtype=int))
  return devices.reshape(shape).transpose(outside + inside).reshape(-1, count)
