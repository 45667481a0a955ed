"""Writes small folders in the formats of the official downloads, with known masks."""

import dataclasses
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIZES = ((48, 64), (64, 48), (40, 40), (90, 120))  # height, width
CATEGORIES = {1: 'person', 18: 'dog', 62: 'chair'}


@dataclasses.dataclass
class Downloads:
  """The content of `root`: annotations/NAME/ with refs and instances.json, and train2014/. Tests modify it."""

  root: Path
  name: str = 'refcoco'
  split_by: str = 'unc'
  refs: list[dict] = dataclasses.field(default_factory=list)
  images: list[dict] = dataclasses.field(default_factory=list)
  annotations: list[dict] = dataclasses.field(default_factory=list)
  masks: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)  # true mask by annotation id

  @property
  def image_dir(self) -> Path:
    return self.root / 'train2014'

  @property
  def folder(self) -> Path:
    return self.root / 'annotations' / self.name

  def image_file(self, image_id: int) -> Path:
    return self.image_dir / f'COCO_train2014_{image_id:012d}.jpg'

  def add_image(self, image_id: int, height: int, width: int, mode: str = 'RGB', exif: int = 0) -> None:
    """Writes a smooth image, on which decoders agree; `exif` is the orientation tag."""
    self.image_dir.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y + image_id) % 256], -1).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    tags = Image.Exif()
    if exif:
      tags[0x0112] = exif
    picture.save(self.image_file(image_id), quality=95, exif=tags)
    self.images.append(
      {
        'id': image_id,
        'file_name': self.image_file(image_id).name,
        'height': height,
        'width': width,
        'license': 1,
        'flickr_url': '',
      }
    )

  def add_annotation(self, ann_id: int, image_id: int, segmentation, mask: np.ndarray, category: int = 1) -> None:
    self.annotations.append(
      {
        'id': ann_id,
        'image_id': image_id,
        'category_id': category,
        'area': float(mask.sum()),
        'bbox': [0.0, 0.0, 1.0, 1.0],
        'iscrowd': int(isinstance(segmentation, dict)),
        'segmentation': segmentation,
      }
    )
    self.masks[ann_id] = mask

  def add_ref(self, ref_id: int, image_id: int, ann_id, split: str, sentences: list[str]) -> None:
    suffix = f'_{ann_id}.jpg' if isinstance(ann_id, int) else '.jpg'
    self.refs.append(
      {
        'ref_id': ref_id,
        'ann_id': ann_id,
        'image_id': image_id,
        'category_id': 1,
        'split': split,
        'file_name': self.image_file(image_id).name.replace('.jpg', suffix),
        'sent_ids': list(range(len(sentences))),
        'sentences': [
          {'sent_id': 100 * ref_id + i, 'sent': text, 'raw': text.upper(), 'tokens': text.split()}
          for i, text in enumerate(sentences)
        ],
      }
    )

  def write(self) -> 'Downloads':
    """Rewrites the annotation files."""
    self.folder.mkdir(parents=True, exist_ok=True)
    if self.name == 'grefcoco':
      (self.folder / f'grefs({self.split_by}).json').write_text(json.dumps(self.refs))
    else:
      (self.folder / f'refs({self.split_by}).p').write_bytes(as_python_2(self.refs))
    (self.folder / 'instances.json').write_text(
      json.dumps(
        {
          'info': {},
          'licenses': [],
          'images': self.images,
          'annotations': self.annotations,
          'categories': [{'id': i, 'name': name, 'supercategory': ''} for i, name in CATEGORIES.items()],
        }
      )
    )
    return self

  def arguments(self, data_dir: Path, *more: str) -> list[str]:
    """Returns arguments of the prepare command."""
    return [
      f'--dataset={self.name}',
      f'--split-by={self.split_by}',
      f'--annotations={self.root / "annotations"}',
      f'--images={self.image_dir}',
      f'--data-dir={data_dir}',
      *more,
    ]


def as_python_2(value, protocol: int = 2) -> bytes:
  """Pickles like Python 2: strings are byte strings (STRING opcodes), which Python 3 never writes."""
  if protocol == 0:
    return _text_protocol(value).encode('latin-1') + b'.'
  return b'\x80\x02' + _binary_protocol(value) + b'.'


def _binary_protocol(value) -> bytes:
  if isinstance(value, str):
    data = value.encode('latin-1')
    return b'T' + len(data).to_bytes(4, 'little') + data
  if isinstance(value, dict):
    return b'}(' + b''.join(_binary_protocol(k) + _binary_protocol(v) for k, v in value.items()) + b'u'
  if isinstance(value, list):
    return b'](' + b''.join(map(_binary_protocol, value)) + b'e'
  return pickle.dumps(value, 2)[2:-1]


def _text_protocol(value) -> str:
  if isinstance(value, str):
    return f'S{value!r}\n' if value.isascii() else "S'" + value.encode('latin-1').decode('latin-1') + "'\n"
  if isinstance(value, dict):
    return '(d' + ''.join(_text_protocol(k) + _text_protocol(v) + 's' for k, v in value.items())
  if isinstance(value, list):
    return '(l' + ''.join(_text_protocol(item) + 'a' for item in value)
  return f'I{value}\n'


def rectangle(height: int, width: int, top: int, left: int, bottom: int, right: int) -> tuple[list[float], np.ndarray]:
  """Returns the COCO polygon of a rectangle and its mask."""
  mask = np.zeros((height, width), bool)
  mask[top:bottom, left:right] = True
  return [float(v) for v in (left, top, right, top, right, bottom, left, bottom)], mask


def run_lengths(mask: np.ndarray) -> list[int]:
  """Returns COCO's uncompressed run lengths, computed pixel by pixel."""
  counts, current, run = [], False, 0
  for pixel in mask.T.reshape(-1):
    if pixel != current:
      counts.append(run)
      current, run = pixel, 0
    run += 1
  return counts + [run]


def compressed(mask: np.ndarray) -> dict:
  """Returns run lengths compressed by pycocotools."""
  runs = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
  return {'size': runs['size'], 'counts': runs['counts'].decode()}


def disc(height: int, width: int) -> np.ndarray:
  """Returns the mask of a disc."""
  canvas = np.zeros((height, width), np.uint8)
  cv2.circle(canvas, (width // 2, height // 2), min(height, width) // 3, 1, -1)
  return canvas.astype(bool)


def make(root: Path, name: str = 'refcoco', split_by: str = 'unc') -> Downloads:
  """Returns five images (RGB, grey, CMYK, EXIF-rotated) with every kind of mask in three splits."""
  made = Downloads(root, name, split_by)
  for number, (mode, exif) in enumerate([('RGB', 0), ('RGB', 0), ('L', 0), ('CMYK', 0), ('RGB', 6)]):
    height, width = SIZES[number % len(SIZES)]
    image_id = 581000 + number
    made.add_image(image_id, height, width, mode, exif)
    first, one = rectangle(height, width, 4, 5, 20, 30)
    second, two = rectangle(height, width, 24, 10, 36, 22)
    blob = disc(height, width)
    made.add_annotation(10 * number + 1, image_id, [first], one)
    made.add_annotation(10 * number + 2, image_id, [first, second], one | two, category=18)
    made.add_annotation(10 * number + 3, image_id, {'size': [height, width], 'counts': run_lengths(blob)}, blob)
    made.add_annotation(10 * number + 4, image_id, compressed(one ^ blob), one ^ blob, category=62)
    split = ('train', 'train', 'train', 'val', 'testA')[number]
    for k in range(1, 5):
      texts = ['the first box', 'caf\xe9 on the left'][: 1 + (k + number) % 2]
      made.add_ref(100 + 10 * number + k, image_id, 10 * number + k, split, texts)
  return made
