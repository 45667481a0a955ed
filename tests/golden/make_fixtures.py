"""Recreates sam.npz, bert.npz and resize.npz: results of PyTorch, segment-anything and transformers at toy sizes.

pip install --editable '.[test]'
python tests/golden/make_fixtures.py
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

sys.path[0] = str(Path(__file__).resolve().parents[2])
from ditsam_jax.convert.torch_peer import segment_anything_modeling
from tests.convert.torch_models import SAM, meta_sam

FOLDER = Path(__file__).parent
GRID, IMAGE = SAM.grid, SAM.image_size


def main():
  torch.manual_seed(0)
  with torch.no_grad():
    save('resize', resize_arrays())
    save('bert', bert_arrays())
    save('sam', sam_arrays())


def save(name: str, arrays: dict[str, np.ndarray]) -> None:
  np.savez(
    FOLDER / f'{name}.npz',
    **{key: value.astype(np.float32) if value.dtype == np.float64 else value for key, value in arrays.items()},
  )


def randomise(module: torch.nn.Module) -> dict[str, np.ndarray]:
  """Fills a module with random values, because zeros and ones could hide mistakes; returns its f32 state by name."""
  for name, tensor in module.state_dict().items():
    if not tensor.is_floating_point():
      continue
    if tensor.ndim == 1:
      tensor.copy_((1.0 if name.endswith('weight') else 0.0) + 0.3 * torch.randn_like(tensor))  # norms and biases
    else:
      embedding = tensor.shape[0] == 1 or 'token' in name or 'gaussian' in name
      tensor.copy_(torch.randn_like(tensor) * (1.0 if embedding else tensor[0].numel() ** -0.5))
  arrays = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
  module.double()  # compute with the f32 weights in f64, without rounding errors
  return arrays


def sam_arrays() -> dict[str, np.ndarray]:
  sam = meta_sam(SAM, segment_anything_modeling())
  encoder, prompts, decoder = sam.image_encoder, sam.prompt_encoder, sam.mask_decoder
  arrays = {
    f'weights/{part}.{name}': value
    for part, module in (('image_encoder', encoder), ('prompt_encoder', prompts), ('mask_decoder', decoder))
    for name, value in randomise(module).items()
  }

  prompts.float()  # the prompt encoder casts to f32
  image = torch.randn(2, 3, IMAGE, IMAGE).double()
  points = torch.rand(2, 4, 2) * IMAGE
  labels = torch.tensor([[1, 0, 1, -1], [0, 1, -1, -1]])
  boxes = torch.tensor([[3.0, 5.5, 40.0, 77.0], [10.0, 0.0, 79.0, 30.0]])
  masks = torch.randn(2, 1, 4 * GRID, 4 * GRID)
  embedding, dense_pe = encoder(image), prompts.get_dense_pe().double()
  arrays |= {
    name: value.numpy()
    for name, value in dict(
      image=image, points=points, labels=labels, boxes=boxes, masks=masks, embedding=embedding, dense_pe=dense_pe
    ).items()
  }
  cases = dict(
    points=((points, labels), None, None),
    boxes=(None, boxes, None),
    masks=(None, None, masks),
    all=((points, labels), boxes, masks),
  )
  for name, case in cases.items():
    sparse, dense = (x.double() for x in prompts(*case))
    arrays[f'{name}/sparse'], arrays[f'{name}/dense'] = sparse.numpy(), dense.numpy()
    for multimask in (False, True):
      # Meta's decoder repeats one image embedding for all prompts; here each prompt has its own image.
      outputs = [
        decoder(embedding[i : i + 1], dense_pe, sparse[i : i + 1], dense[i : i + 1], multimask) for i in range(2)
      ]
      kind = 'multi' if multimask else 'single'
      arrays[f'{name}/{kind}/logits'], arrays[f'{name}/{kind}/iou'] = (
        torch.cat(parts).numpy() for parts in zip(*outputs)
      )
  return arrays


def bert_arrays() -> dict[str, np.ndarray]:
  from transformers import BertConfig, BertModel

  model = BertModel(
    BertConfig(
      vocab_size=30,
      hidden_size=24,
      num_hidden_layers=2,
      num_attention_heads=3,
      intermediate_size=40,
      max_position_embeddings=16,
    ),
    add_pooling_layer=False,
  ).eval()
  arrays = {f'weights/{name}': value for name, value in randomise(model).items() if 'position_ids' not in name}
  token_ids = torch.randint(1, 30, (3, 9))
  token_mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] + [0] * 8])
  token_ids = token_ids * token_mask  # [PAD] is 0
  states = model(token_ids, attention_mask=token_mask).last_hidden_state
  with torch.enable_grad():
    probe = torch.randn_like(states)
    (model(token_ids, attention_mask=token_mask).last_hidden_state * probe).sum().backward()
  return arrays | dict(
    token_ids=token_ids.numpy(),
    token_mask=token_mask.numpy(),
    states=states.numpy(),
    probe=probe.numpy(),
    word_gradient=model.embeddings.word_embeddings.weight.grad.numpy(),
  )


def resize_arrays() -> dict[str, np.ndarray]:
  line, plane = torch.randn(1, 3, 27).double(), torch.randn(2, 3, 9, 14).double()
  arrays = dict(line=line.numpy(), plane=plane.numpy())
  for size in (1, 7, 27, 63, 127):
    arrays[f'linear/{size}'] = functional.interpolate(line, size=size, mode='linear').numpy()
  for size in ((1, 1), (4, 7), (9, 14), (20, 31)):
    name = f'{size[0]}x{size[1]}'
    arrays[f'bicubic/{name}'] = functional.interpolate(plane, size=size, mode='bicubic').numpy()
    arrays[f'aligned/{name}'] = functional.interpolate(plane, size=size, mode='bilinear', align_corners=True).numpy()
  return arrays


if __name__ == '__main__':
  main()
