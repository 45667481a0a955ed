"""Test inputs and JAX's outputs for them, with which every export is compared."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ditsam_jax.data.shapes.expressions import describe
from ditsam_jax.data.shapes.scenes import ScenesConfig, make_scene, scene_rng
from ditsam_jax.exporting.source import Source
from ditsam_jax.inference import programs
from ditsam_jax.inference.framing import Framed, frame
from ditsam_jax.inference.prompts import Prompt, point_tokens
from ditsam_jax.models.prompt_encoder import ABSENT

TOLERANCE = 1e-4  # of f32 programs, relative to the largest value


class Case(NamedTuple):
  """A prompt on an image, as the exported programs take it.

  Attributes:
    title: what is asked.
    framed: the image.
    tokens: token ids and mask, int32 [T] each, or None.
    points, labels: f32 [P, 2] in pixels of the square, and int32 [P].
    mask: mask prompt, f32 [4h, 4w], or None.
  """

  title: str
  framed: Framed
  tokens: tuple[np.ndarray, np.ndarray] | None
  points: np.ndarray
  labels: np.ndarray
  mask: np.ndarray | None


class Stages(NamedTuple):
  """What JAX computes for a case: all four masks, the single one first."""

  text_features: np.ndarray | None  # [T, Ct]
  image_embedding: np.ndarray  # [h, w, C]
  low_res_masks: np.ndarray  # [4, 4h, 4w]
  iou: np.ndarray  # [4]
  masks: np.ndarray  # [4, height, width]


def cases(source: Source) -> list[Case]:
  """Sentences, points, boxes and mask prompts on two scenes of the shapes data, one landscape and one portrait."""
  config, tokenizer = source.config, source.tokenizer()
  scenes = ScenesConfig(image_size=160)
  framed, sentences = [], []
  for index, window in enumerate(((slice(0, 120), slice(None)), (slice(None), slice(20, 121)))):
    rng = scene_rng(scenes, 'test', index)
    scene = make_scene(scenes, rng)
    framed.append(frame(np.ascontiguousarray(scene.image[window]), config))
    expressions = describe(scene.shapes, scenes.image_size, 1, rng)
    sentences.append(next(found[0][0] for found in expressions if found))
  height, width = framed[0].size
  points = np.array([[width * 0.3, height * 0.4], [width * 0.7, height * 0.55]])
  box = np.array([width * 0.2, height * 0.1, width * 0.6, height * 0.8])
  blob = np.hypot(*(np.indices((4 * config.grid,) * 2) - 1.7 * config.grid)) < config.grid
  earlier = np.where(blob, 6.0, -6.0).astype(np.float32)

  def case(title: str, image: Framed, prompt: Prompt) -> Case:
    tokens = point_tokens(prompt, image.scale, image.offset)
    xy, labels = tokens or (np.zeros((0, 2), np.float32), np.zeros(0, np.int32))
    used = labels != ABSENT
    ids = None if prompt.text is None or tokenizer is None else tuple(rows[0] for rows in tokenizer([prompt.text]))
    return Case(title, image, ids, xy[used], labels[used], prompt.mask)

  def prompt(**parts: Any) -> Prompt:
    labels = None if parts.get('points') is None else np.array([1, 0][: len(parts['points'])], np.int32)
    return Prompt(labels=labels, **parts)

  found = [
    case('one point', framed[0], prompt(points=points[:1])),
    case('two points and a box', framed[0], prompt(points=points, box=box)),
    case('a box and a mask', framed[1], prompt(box=box, mask=earlier)),
  ]
  if tokenizer is not None:
    found += [
      case(f'"{sentences[0]}"', framed[0], prompt(text=sentences[0])),
      case(
        f'"{sentences[1]}", a point and a mask', framed[1], prompt(text=sentences[1], points=points[:1], mask=earlier)
      ),
    ]
  return found


def computed(source: Source, asked: list[Case]) -> list[Stages]:
  """Runs JAX in f32 on the CPU."""
  with jax.default_device(jax.local_devices(backend='cpu')[0]):
    parts = programs.parts_of(source.model())
    return [_computed(parts, case) for case in asked]


def _computed(parts: programs.Parts, case: Case) -> Stages:
  text = None
  if case.tokens is not None and parts.reader is not None:
    ids, mask = (jnp.asarray(rows)[None] for rows in case.tokens)
    text = programs.read(*parts.reader, ids, mask)[0]
  enters = text is not None and case.framed.config.encodes_text_with_image
  embedding = programs.encode(*parts.encoder, case.framed.square.pixels[None], [text] if enters else None)[0]
  low_res, iou = _decode(
    *parts.decoder,
    embedding[None],
    case.points[None],
    case.labels[None],
    None if case.mask is None else case.mask[None],
    None if text is None else text[None],
  )
  low_res = np.asarray(low_res)[0]
  return Stages(
    None if text is None else np.asarray(text),
    np.asarray(embedding),
    low_res,
    np.asarray(iou)[0],
    case.framed.own_size(low_res),
  )


@functools.partial(jax.jit, static_argnums=0)
def _decode(part, weights, embedding, points, labels, masks, text):
  """All four masks; `programs.decode` returns one or three."""
  model = part.module(weights)
  side = (model.config.image_size,) * 2
  sparse = [model.prompt_encoder.embed_points(points, labels, side)] if points.shape[1] else []
  output = model.decode(embedding, sparse, masks, side, None, text)
  return output.low_res_logits, output.iou


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
  """The largest absolute difference from our values, relative to their largest absolute value."""
  return float(np.abs(ours - theirs).max() / np.abs(ours).max())
