"""Makes photograph-like images in RefCOCO's formats: python benchmarks/photographs.py --output=DIR --images=1000

Writes DIR/annotations/refcoco/ (refs(unc).p, instances.json) and DIR/train2014/: JPEGs of 640 x 480 and about 145 kB,
like COCO's, with 2 or 3 objects per image, each a polygon with 30 corners and 2 to 4 expressions. Prints a JSON line.
"""

import argparse
import contextlib
import io
import itertools
import json
import pickle
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

import cv2
import numpy as np

from ditsam_jax.data import datasets
from ditsam_jax.data.refcoco import builder
from ditsam_jax.data.referring import ReferringSource
from ditsam_jax.tokenization import Tokenizer

HEIGHT, WIDTH, QUALITY, CORNERS = 480, 640, 90, 30
WORDS = ('left', 'right', 'man', 'woman', 'dog', 'red', 'shirt', 'chair', 'the', 'on', 'in', 'front', 'bear', 'of', 'a')


def write(root: Path, images: int, seed: int = 0) -> dict:
  """Writes images and annotations; returns their numbers and sizes."""
  folder, pictures = root / 'annotations' / 'refcoco', root / 'train2014'
  folder.mkdir(parents=True)
  pictures.mkdir()
  rng = np.random.default_rng(seed)
  infos, annotations, refs, size, sentence_id = [], [], [], 0, itertools.count()
  for image_id in range(1, images + 1):
    polygons = [_polygon(rng) for _ in range(2 + image_id % 2)]
    name = f'COCO_train2014_{image_id:012d}.jpg'
    encoded = cv2.imencode('.jpg', photograph(polygons, rng), (cv2.IMWRITE_JPEG_QUALITY, QUALITY))[1].tobytes()
    (pictures / name).write_bytes(encoded)
    size += len(encoded)
    infos.append({'id': image_id, 'file_name': name, 'height': HEIGHT, 'width': WIDTH})
    # Seven in ten images are in the training split.
    split = ('train', 'val', 'testA', 'testB')[max(0, image_id % 10 - 6)]
    for polygon in polygons:
      number = len(annotations) + 1
      annotations.append(
        {
          'id': number,
          'image_id': image_id,
          'category_id': 1,
          'iscrowd': 0,
          'segmentation': [polygon.reshape(-1).round(2).tolist()],
        }
      )
      texts = [' '.join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(rng.integers(2, 5))]
      sentences = [{'sent_id': next(sentence_id), 'sent': text, 'raw': text, 'tokens': text.split()} for text in texts]
      refs.append(
        {
          'ref_id': number,
          'ann_id': number,
          'image_id': image_id,
          'category_id': 1,
          'split': split,
          'file_name': name,
          'sent_ids': [one['sent_id'] for one in sentences],
          'sentences': sentences,
        }
      )
  (folder / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))
  (folder / 'instances.json').write_text(
    json.dumps(
      {'images': infos, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'person', 'supercategory': ''}]}
    )
  )
  return {'images': images, 'objects': len(refs), 'mean_jpeg_kB': round(size / images / 1e3, 1)}


def open_prepared(root: Path, split: str, max_tokens: int) -> tuple[ReferringSource, Tokenizer]:
  """Prepares the output of `write` in `root`; returns one split and a tokenizer with its words."""
  with contextlib.redirect_stderr(io.StringIO()):  # hides the progress bar
    builder.prepare('refcoco', 'unc', root / 'annotations', root / 'train2014', root / 'data', processes=0)
  (root / 'vocab.txt').write_text('\n'.join(('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *WORDS)))
  return datasets.open_split('refcoco', root / 'data', split), Tokenizer(root / 'vocab.txt', max_tokens)


def photograph(polygons: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
  """Returns noise with a photograph's spectrum, objects with sharp edges and grain, uint8 [480, 640, 3]."""
  picture = np.zeros((HEIGHT, WIDTH, 3), np.float32)
  for octave in range(9):
    step = 2**octave
    noise = rng.standard_normal((HEIGHT // step + 2, WIDTH // step + 2, 3), np.float32)
    noise = 0.8 * noise.mean(-1, keepdims=True) + 0.2 * noise  # mostly brightness, little colour
    picture += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC) * step**0.7
  picture *= 60 / picture.std()
  for polygon in polygons:
    inside = np.zeros((HEIGHT, WIDTH), np.uint8)
    cv2.fillPoly(inside, [polygon.round().astype(np.int32)], 1)
    picture[inside > 0] = 0.6 * picture[inside > 0] + rng.normal(0, 50, 3)
  grain = 16 * rng.standard_normal((HEIGHT, WIDTH, 1), np.float32)
  return np.clip(picture + grain + 120, 0, 255).astype(np.uint8)


def _polygon(rng: np.random.Generator) -> np.ndarray:
  """Returns the corners (x, y) of a blob inside the image, float64 [30, 2]."""
  angles = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
  radii = rng.uniform(40, 140) * rng.uniform(0.7, 1.0, CORNERS)
  centre = rng.uniform((100, 100), (WIDTH - 100, HEIGHT - 100))
  corners = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], -1)
  return np.clip(corners, 0, (WIDTH - 1, HEIGHT - 1))


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  parser.add_argument('--output', type=Path, required=True, help='folder to create')
  parser.add_argument('--images', type=int, default=1000)
  options = parser.parse_args()
  print(json.dumps(write(options.output, options.images)))


if __name__ == '__main__':
  main()
