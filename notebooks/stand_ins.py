"""Small files in the formats of the official downloads, with random weights, for notebooks that cannot download.

Every file is written by the library that defines its format: Meta's segment_anything, transformers, and the tensors of
the DIT release. RefCOCO's images are scenes of the embedded data set `shapes`.
"""

import itertools
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

import ditsam_jax
from ditsam_jax.convert.flax_to_torch import unused_tensors
from ditsam_jax.convert.torch_peer import Peer, segment_anything_modeling
from ditsam_jax.models.config import DitSamConfig, ImageEncoderConfig, TextEncoderConfig

WIDTH, DEPTH, HEADS, GRID, WINDOW, GLOBAL_BLOCKS = 128, 2, 2, 16, 7, (1,)  # the decoder has SAM's sizes
IMAGE_SIZE = 128  # of models with text; SAM's own is 16 * GRID
VOCABULARY = Path(ditsam_jax.__file__).parent / 'data' / 'shapes' / 'vocab.txt'

# Options of `torch_to_flax` for a checkpoint of the DIT release, which does not state them.
CONVERT_OPTIONS = [f'--text-heads={HEADS}', f'--image-size={IMAGE_SIZE}']

# Options of `ditsam_jax.train` for models of these sizes.
TRAIN_OPTIONS = [
  f'--config.model.image_size={IMAGE_SIZE}',
  f'--config.model.image_encoder.width={WIDTH}',
  f'--config.model.image_encoder.depth={DEPTH}',
  f'--config.model.image_encoder.heads={HEADS}',
  '--config.model.image_encoder.global_blocks=1,',
  f'--config.model.image_encoder.pretrain_grid={GRID}',
  f'--config.model.image_encoder.pretrain_window={WINDOW}',
  f'--config.model.text_encoder.vocab_size={len(VOCABULARY.read_text().splitlines())}',
  f'--config.model.text_encoder.width={WIDTH}',
  f'--config.model.text_encoder.depth={DEPTH}',
  f'--config.model.text_encoder.heads={HEADS}',
  f'--config.model.text_encoder.mlp_width={2 * WIDTH}',
  '--config.data.augmentation.scale_steps=2',
  '--config.data.batch_size=4',
  '--config.accumulate=1',
  '--config.dtype=float32',  # bfloat16 compiles slowly for CPUs
  '--config.eval_batch_size=8',
  '--config.epochs=None',
  '--config.total_steps=6',
  '--config.optimizer.warmup_steps=2',
  '--config.log_every=2',
]


def write_sam(file: Path) -> None:
  """Writes a SAM in Meta's format, like sam_vit_b_01ec64.pth."""
  modeling = segment_anything_modeling()
  sam = modeling.Sam(
    modeling.ImageEncoderViT(
      img_size=16 * GRID,
      embed_dim=WIDTH,
      depth=DEPTH,
      num_heads=HEADS,
      norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
      use_rel_pos=True,
      window_size=WINDOW,
      global_attn_indexes=GLOBAL_BLOCKS,
    ),
    modeling.PromptEncoder(256, (GRID, GRID), (16 * GRID, 16 * GRID), 16),
    modeling.MaskDecoder(
      transformer_dim=256,
      transformer=modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
    ),
  )
  file.parent.mkdir(parents=True, exist_ok=True)
  torch.save(randomised(sam).state_dict(), file)


def write_hugging_face_sam(folder: Path) -> None:
  """Writes a SamModel as the folder of facebook/sam-vit-base: config.json and model.safetensors."""
  from transformers import SamConfig, SamModel

  vision = {
    'hidden_size': WIDTH,
    'num_hidden_layers': DEPTH,
    'num_attention_heads': HEADS,
    'image_size': 16 * GRID,
    'window_size': WINDOW,
    'global_attn_indexes': list(GLOBAL_BLOCKS),
    'mlp_dim': 4 * WIDTH,
  }
  config = SamConfig(vision_config=vision, prompt_encoder_config={'image_size': 16 * GRID})
  _save(SamModel(config), folder)


def write_bert(folder: Path) -> None:
  """Writes a BertModel as the folder of bert-base-uncased: config.json, model.safetensors and vocab.txt."""
  from transformers import BertConfig, BertModel

  words = len(VOCABULARY.read_text().splitlines())
  config = BertConfig(
    vocab_size=words,
    hidden_size=WIDTH,
    num_hidden_layers=DEPTH,
    num_attention_heads=HEADS,
    intermediate_size=2 * WIDTH,
  )
  _save(BertModel(config), folder)
  shutil.copy(VOCABULARY, folder / 'vocab.txt')


def write_dit(file: Path) -> None:
  """Writes an L-DIT as a training checkpoint of the DIT release, like its seg_best.pth."""
  words = len(VOCABULARY.read_text().splitlines())
  config = DitSamConfig(
    ImageEncoderConfig(WIDTH, DEPTH, HEADS, global_blocks=GLOBAL_BLOCKS, pretrain_grid=GRID, pretrain_window=WINDOW),
    text_encoder=TextEncoderConfig(words, WIDTH, DEPTH, HEADS, mlp_width=2 * WIDTH),
    image_size=IMAGE_SIZE,
  )
  tensors = randomised(Peer(config)).state_dict() | unused_tensors(config)
  tensors = {f'module.{name}': tensor for name, tensor in tensors.items()}
  file.parent.mkdir(parents=True, exist_ok=True)
  torch.save({'epoch': 39, 'state_dict': tensors, 'optimizer': {}, 'scheduler': {}, 'lr': 1e-6}, file)


def write_refcoco(root: Path, images: int = 24) -> None:
  """Writes root/refcoco/ with refs(unc).p and instances.json, and root/train2014/ with JPEG files.

  Half of the images are for training, a sixth each for val, testA and testB. Needs the extra `train`.
  """
  from ditsam_jax.data.shapes import ScenesConfig
  from ditsam_jax.data.shapes.builder import described_scene

  (root / 'refcoco').mkdir(parents=True, exist_ok=True)
  (root / 'train2014').mkdir(exist_ok=True)
  infos, annotations, refs, numbers = [], [], [], itertools.count(1)
  for index in range(images):
    scene, sentences = described_scene(ScenesConfig(image_size=160), 'train', index)
    image_id, split = 581000 + index, ('train', 'val', 'train', 'testA', 'train', 'testB')[index % 6]
    name = f'COCO_train2014_{image_id:012d}.jpg'
    cv2.imwrite(str(root / 'train2014' / name), scene.image[..., ::-1])
    size = {'height': scene.image.shape[0], 'width': scene.image.shape[1]}
    infos.append({'id': image_id, 'file_name': name, **size})
    for mask, described in zip(scene.masks, sentences):
      polygons = _polygons(mask)
      if not polygons:
        continue
      number = next(numbers)
      shared = {'image_id': image_id, 'category_id': 1}
      annotations.append({'id': number, 'iscrowd': 0, 'segmentation': polygons, **shared})
      texts = [text for text, _ in described]
      refs.append(
        {
          'ref_id': number,
          'ann_id': number,
          'split': split,
          'file_name': name,
          'sent_ids': [10 * number + k for k in range(len(texts))],
          'sentences': [
            {'sent_id': 10 * number + k, 'sent': text, 'raw': text, 'tokens': text.split()}
            for k, text in enumerate(texts)
          ],
          **shared,
        }
      )
  instances = {'images': infos, 'annotations': annotations, 'categories': [{'id': 1, 'name': 'shape'}]}
  (root / 'refcoco' / 'instances.json').write_text(json.dumps(instances))
  (root / 'refcoco' / 'refs(unc).p').write_bytes(pickle.dumps(refs, 2))


def randomised(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
  """Adds noise to parameters that start constant, such as position embeddings, because zeros could hide mistakes."""
  generator = torch.Generator().manual_seed(seed)
  with torch.no_grad():
    for parameter in module.parameters():
      if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
        parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
  return module.eval()


def _save(model: Any, folder: Path) -> None:
  from transformers.utils import logging

  logging.disable_progress_bar()
  randomised(model).save_pretrained(folder)


def _polygons(mask: np.ndarray) -> list[list[float]]:
  """The outlines of a mask in COCO's form, x0, y0, x1, y1, ...; at least three corners each."""
  outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
  return [outline.reshape(-1).astype(float).tolist() for outline in outlines if len(outline) >= 3]
