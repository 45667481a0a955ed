"""Creates a small data set of referring expressions in the format of your own data: photographs with drawn objects.

  python examples/own_pictures.py --output=own

Writes own/photos/*.jpg, own/masks/*.png and own/mine.jsonl with one line per object, using all three kinds of masks
that `ditsam_jax.prepare` reads: PNG files, polygons and run lengths. Backgrounds are photographs from scikit-image
(`pip install scikit-image`); training and validation use different ones.
"""

import argparse
import dataclasses
import functools
import json
import math
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter
from pycocotools import mask as run_lengths
from skimage import data

WIDTH, HEIGHT = 320, 240
SHARP = 3  # supersampling factor
COLOURS = {
  'white': (238, 236, 230),
  'black': (38, 38, 44),
  'pink': (240, 120, 180),
  'brown': (128, 78, 42),
  'cyan': (40, 200, 215),
  'red': (212, 36, 40),
}
PHOTOGRAPHS = {
  'train': ('astronaut', 'chelsea', 'brick', 'gravel', 'immunohistochemistry', 'camera', 'coins', 'hubble_deep_field'),
  'val': ('rocket', 'grass', 'retina'),
}


@dataclasses.dataclass
class Thing:
  """An object in an image."""

  kind: str
  colour: str
  x: float  # the centre, in pixels
  y: float
  size: float  # half of its length, in pixels
  mask: np.ndarray  # bool [HEIGHT, WIDTH]


def leaf(draw, scale, ink, dark):
  bow = [(t, 0.45 * math.sin(math.pi * (t + 1) / 2)) for t in np.linspace(-0.8, 1, 40)]
  draw.polygon(scale(bow + [(x, -y) for x, y in reversed(bow)]), fill=ink)
  draw.line(scale([(-1, 0), (0.8, 0)]), fill=dark, width=7)
  for x in (-0.4, 0, 0.4):
    draw.line(scale([(x, 0), (x + 0.25, 0.25)]) + scale([(x, 0), (x + 0.25, -0.25)]), fill=dark, width=4)


def key(draw, scale, ink, dark):
  draw.ellipse(scale([(-1, -0.38), (-0.24, 0.38)]), fill=ink)
  draw.ellipse(scale([(-0.78, -0.16), (-0.46, 0.16)]), fill=(0, 0, 0, 0))
  draw.polygon(scale([(-0.3, -0.1), (1, -0.1), (1, 0.1), (-0.3, 0.1)]), fill=ink)
  for x in (0.5, 0.8):
    draw.polygon(scale([(x, 0), (x + 0.14, 0), (x + 0.14, 0.4), (x, 0.4)]), fill=ink)


def cup(draw, scale, ink, dark):
  draw.ellipse(scale([(0.2, -0.4), (0.95, 0.35)]), fill=ink)
  draw.ellipse(scale([(0.38, -0.22), (0.77, 0.17)]), fill=(0, 0, 0, 0))
  draw.polygon(scale([(-0.8, -0.6), (0.6, -0.6), (0.4, 0.7), (-0.6, 0.7)]), fill=ink)
  draw.ellipse(scale([(-0.8, -0.78), (0.6, -0.42)]), fill=ink)
  draw.ellipse(scale([(-0.68, -0.72), (0.48, -0.48)]), fill=dark)


def arrow(draw, scale, ink, dark):
  outline = [(-1, -0.18), (0.2, -0.18), (0.2, -0.5), (1, 0), (0.2, 0.5), (0.2, 0.18), (-1, 0.18)]
  draw.polygon(scale(outline), fill=ink)


def heart(draw, scale, ink, dark):
  turn = np.linspace(0, 2 * math.pi, 80)
  x = np.sin(turn) ** 3
  y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)) / 17
  draw.polygon(scale(list(zip(0.85 * x, 0.85 * y))), fill=ink)


def fish(draw, scale, ink, dark):
  draw.polygon(scale([(-0.3, 0), (-1, -0.5), (-0.8, 0), (-1, 0.5)]), fill=ink)
  draw.ellipse(scale([(-0.6, -0.42), (1, 0.42)]), fill=ink)
  draw.ellipse(scale([(0.62, -0.2), (0.76, -0.06)]), fill=dark)
  draw.arc(scale([(0.0, -0.3), (0.45, 0.3)]), 110, 250, fill=dark, width=5)


KINDS = {'leaf': leaf, 'key': key, 'cup': cup, 'arrow': arrow, 'heart': heart, 'fish': fish}
UPRIGHT = {'cup', 'heart', 'fish'}
HOLES = {'key', 'cup'}  # shapes with holes, which polygons cannot represent


def drawn(kind: str, colour: str, size: float, rng: np.random.Generator) -> Image.Image:
  """Draws an object on a transparent square, rotated randomly."""
  side = round(2.3 * size) * SHARP

  def scale(points):
    return [(side / 2 + x * size * SHARP, side / 2 + y * size * SHARP) for x, y in points]

  ink = COLOURS[colour]
  dark = tuple(round(0.45 * channel) for channel in ink) if colour != 'black' else (110, 110, 120)
  image = Image.new('RGBA', (side, side))
  KINDS[kind](ImageDraw.Draw(image), scale, (*ink, 255), (*dark, 255))
  angle = rng.uniform(-20, 20) if kind in UPRIGHT else rng.uniform(0, 360)
  image = image.rotate(angle, Image.Resampling.BICUBIC)
  light = Image.linear_gradient('L').resize(image.size).point(lambda value: 255 - 0.35 * value)
  red, green, blue, alpha = image.split()
  shaded = Image.merge('RGB', [ImageChops.multiply(channel, light) for channel in (red, green, blue)])
  shaded.putalpha(alpha)
  return shaded.resize((side // SHARP, side // SHARP), Image.Resampling.LANCZOS)


@functools.cache
def photograph(name: str) -> Image.Image:
  return Image.fromarray(getattr(data, name)()).convert('RGB')


def background(split: str, rng: np.random.Generator) -> Image.Image:
  """Returns a random crop of one of the split's photographs."""
  name = PHOTOGRAPHS[split][rng.integers(len(PHOTOGRAPHS[split]))]
  whole = photograph(name)
  share = rng.uniform(0.6, 1.0) * min(whole.width / WIDTH, whole.height / HEIGHT)
  width, height = round(share * WIDTH), round(share * HEIGHT)
  left, top = int(rng.integers(whole.width - width + 1)), int(rng.integers(whole.height - height + 1))
  return whole.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def picture(split: str, rng: np.random.Generator) -> tuple[Image.Image, list[Thing]]:
  """Draws up to four objects that do not touch on a photograph."""
  image, things = background(split, rng), []
  free = np.ones((HEIGHT, WIDTH), bool)
  kinds = rng.choice(list(KINDS), size=2, replace=False)  # few kinds and colours, so that sentences need both
  colours = rng.choice(list(COLOURS), size=3, replace=False)
  wanted = rng.integers(2, 5)
  for _ in range(60):
    if len(things) == wanted:
      break
    kind, colour, size = str(rng.choice(kinds)), str(rng.choice(colours)), rng.uniform(38, 66)
    side = round(2.3 * size)
    left, top = int(rng.integers(WIDTH - side + 1)), int(rng.integers(HEIGHT - side + 1))
    if not free[top + side // 4 : top + 3 * side // 4, left + side // 4 : left + 3 * side // 4].all():
      continue  # occupied; saves drawing
    whole = Image.new('RGBA', (WIDTH, HEIGHT))
    whole.paste(drawn(kind, colour, size, rng), (left, top))
    alpha = whole.getchannel('A')
    mask = np.asarray(alpha) > 127
    if (mask & ~free).any():
      continue
    shadow = ImageChops.offset(alpha.filter(ImageFilter.GaussianBlur(4)), 3, 4).point(lambda value: 0.5 * value)
    image.paste((0, 0, 0), mask=shadow)
    image.paste(whole, mask=alpha)
    ys, xs = np.nonzero(mask)
    things.append(Thing(kind, colour, xs.mean(), ys.mean(), size, mask))
    free &= ~cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
  return image, things


def sentences(thing: Thing, others: list[Thing]) -> list[str]:
  """Returns sentences that match only this object, by kind, colour, size and neighbours."""
  found = []
  alike = [other for other in others if other.kind == thing.kind]
  twins = [other for other in alike if other.colour == thing.colour]
  if not alike:
    found.append(f'the {thing.kind}')
  if not twins:
    found.append(f'the {thing.colour} {thing.kind}')
  if alike and all(thing.size > 1.25 * other.size for other in alike):
    found.append(f'the biggest {thing.kind}')
  for word, distance in (
    ('left of', lambda one, two: two.x - one.x),
    ('right of', lambda one, two: one.x - two.x),
    ('over', lambda one, two: two.y - one.y),
    ('under', lambda one, two: one.y - two.y),
  ):
    for other in others:
      same = [one for one in others if (one.kind, one.colour) == (other.kind, other.colour)]
      if len(same) > 1 or (other.kind, other.colour) == (thing.kind, thing.colour):
        continue  # "the red cup" would be ambiguous
      if distance(thing, other) > 50 and not any(distance(one, other) > 0 for one in alike if one is not other):
        found.append(f'the {thing.kind} {word} the {other.colour} {other.kind}')
  return found


def described(split: str, rng: np.random.Generator) -> tuple[Image.Image, list[tuple[Thing, list[str]]]]:
  """Returns an image and up to three sentences for each object that a sentence can identify, at least two objects."""
  while True:
    image, things = picture(split, rng)
    found = [(thing, sentences(thing, [other for other in things if other is not thing])) for thing in things]
    found = [(thing, rng.permutation(texts)[:3].tolist()) for thing, texts in found if texts]
    if len(found) > 1:
      return image, found


def stored(mask: np.ndarray, kind: str, number: int, folder: Path) -> object:
  """Returns a mask as one of the three kinds, in turn."""
  if number % 3 == 1 and kind not in HOLES:
    outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [outline.ravel().tolist() for outline in outlines if len(outline) > 2]
  if number % 3 == 2:
    coded = run_lengths.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {'size': list(map(int, coded['size'])), 'counts': coded['counts'].decode()}  # pyright: ignore[reportAttributeAccessIssue]  # bytes, although declared str
  name = f'masks/{number:04d}.png'
  (folder / 'masks').mkdir(exist_ok=True)
  Image.fromarray(mask).save(folder / name)
  return name


def main() -> None:
  """Writes the data set."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split(':')[0])
  parser.add_argument('--output', type=Path, required=True, metavar='DIR', help='a new folder')
  parser.add_argument(
    '--pictures', type=int, default=200, metavar='N', help='number of pictures; a quarter is for validation'
  )
  options = parser.parse_args()
  rng = np.random.default_rng(0)
  (options.output / 'photos').mkdir(parents=True)
  lines, number = [], 0
  for index in range(options.pictures):
    split = 'val' if index % 4 == 3 else 'train'
    image, found = described(split, rng)
    name = f'{index:03d}.jpg'
    image.save(options.output / 'photos' / name, quality=90)
    for thing, texts in found:
      mask = stored(thing.mask, thing.kind, number, options.output)
      lines.append({'image': name, 'text': texts, 'mask': mask, 'split': split, 'category': thing.kind})
      number += 1
  (options.output / 'mine.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  print(f'{options.pictures} pictures, {number} objects: {options.output / "mine.jsonl"}')


if __name__ == '__main__':
  main()
