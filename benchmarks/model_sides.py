"""The sides of benchmarks/model.py, each run in a separate process."""

import argparse
from functools import partial

import numpy as np

from benchmarks.measuring import peak_of_process, timed
from ditsam_jax.models.config import DitSamConfig


def run(options: argparse.Namespace, config: DitSamConfig) -> dict:
  """Runs one side; returns the seconds of both passes, memory and the first loss, and writes the logits to a file."""
  with np.load(options.folder / 'batch.npz') as file:
    batch = dict(file)
  side = _ditsam_jax if options.side == 'ditsam_jax' else _torch
  return side(options, config, batch)


def _ditsam_jax(options: argparse.Namespace, config: DitSamConfig, batch: dict[str, np.ndarray]) -> dict:
  import jax
  import jax.numpy as jnp

  from benchmarks.measuring import jitted_forward
  from ditsam_jax.config import lengths
  from ditsam_jax.config.recipes import as_config_dict, recipe
  from ditsam_jax.models.execution import Execution
  from ditsam_jax.models.weights import cast
  from ditsam_jax.parallel import sharding
  from ditsam_jax.storage import saved_model
  from ditsam_jax.storage.building import build_model
  from ditsam_jax.training import memory
  from ditsam_jax.training.program import build

  images, mask = batch.pop('images'), batch.pop('mask')
  inputs = [jnp.asarray(x) for x in (images, batch['token_ids'].astype(np.int32), batch['token_mask'].astype(np.int32))]
  model = build_model(config, saved_model.read_weights(options.folder / 'model'), 'benchmark')
  cast(model, jnp.dtype(options.dtype))
  forward = jitted_forward(model, Execution(attention=options.attention))
  np.save(options.folder / 'ditsam_jax.npy', forward(*inputs))
  seconds = timed(lambda: forward(*inputs).block_until_ready(), options.steps)
  peak = {'forward': _jax_peak()}
  model = forward = None  # frees their memory for the train step
  settings = recipe('refcoco')
  settings.model = as_config_dict(config)
  settings.update(dtype=options.dtype, remat=options.remat, scan=options.scan, attention=options.attention)
  settings.data.batch_size = options.batch_size
  settings = lengths.resolve(settings, lambda: lengths.samples_without_data(settings))
  program = build(settings, config, sharding.make_mesh(settings.mesh, jax.devices()[:1]))
  state, _ = program.initial_state(str(options.folder / 'model'))
  rows = program.assemble(
    {'image': images, 'mask': mask, 'token_ids': np.asarray(inputs[1]), 'token_mask': np.asarray(inputs[2])}
  )
  program, _ = program.compiled()
  memory.return_freed()  # as ditsam_jax.train does
  losses = []

  def step():
    nonlocal state
    state, metrics = program.step(state, rows)
    losses.append(float(metrics['loss']))
    jax.block_until_ready(state)

  training = timed(step, options.steps)
  return {
    'forward': seconds,
    'train': training,
    'loss': losses[0],
    'peak_gb': peak | {'train': _jax_peak()},
    'device': jax.devices()[0].device_kind,
    'versions': f'jax {jax.__version__}',
  }


def _jax_peak() -> float:
  import jax

  memory = jax.devices()[0].memory_stats() or {}
  return round(memory['peak_bytes_in_use'] / 1e9, 2) if 'peak_bytes_in_use' in memory else peak_of_process()


def _torch(options: argparse.Namespace, config: DitSamConfig, batch: dict[str, np.ndarray]) -> dict:
  import torch
  from torch.nn import functional

  on_gpu = torch.cuda.is_available()
  device = torch.device('cuda' if on_gpu else 'cpu')
  model = (_peer(config, options.folder, on_gpu) if options.side == 'pytorch' else _MetaSam(config)).to(device)
  tensors = {name: torch.from_numpy(array).to(device) for name, array in batch.items()}
  mask, images = tensors.pop('mask').float(), tensors.pop('images').permute(0, 3, 1, 2).contiguous()
  run = torch.compile(model) if on_gpu else model
  autocast = partial(torch.autocast, device.type, dtype=torch.bfloat16, enabled=options.dtype == 'bfloat16')

  def done(value):
    if on_gpu:
      torch.cuda.synchronize()
    return value

  def forward():
    with torch.no_grad(), autocast():
      return done(run(images, **tensors)['logits'])

  if options.side == 'pytorch':
    np.save(options.folder / 'pytorch.npy', forward().float().cpu().numpy())
  seconds = timed(forward, options.steps)
  peak = {'forward': _torch_peak(on_gpu)}
  parameters = list(model.parameters())
  average = [parameter.detach().clone() for parameter in parameters]
  optimizer = torch.optim.Adam(parameters, lr=1e-7, betas=(0.9, 0.98), eps=1e-9, foreach=True)
  losses = []

  def step():
    optimizer.zero_grad(set_to_none=True)
    with autocast():
      logits = run(images, **tensors)['logits']
    loss = functional.binary_cross_entropy_with_logits(logits.float(), mask)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 0.15)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(average, parameters, 1e-3)
    losses.append(float(done(loss.detach())))

  training = timed(step, options.steps)
  name = torch.cuda.get_device_name() if on_gpu else 'cpu'
  return {
    'forward': seconds,
    'train': training,
    'loss': losses[0],
    'peak_gb': peak | {'train': _torch_peak(on_gpu)},
    'device': name,
    'versions': f'torch {torch.__version__}',
  }


def _torch_peak(on_gpu: bool) -> float:
  import torch

  return round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else peak_of_process()


def _peer(config: DitSamConfig, folder, fused: bool):
  """Returns the same model in PyTorch, with its fused attention if `fused`."""
  import torch

  from ditsam_jax.convert import torch_peer

  peer = torch_peer.Peer(config, _fused_attention if fused else torch_peer.attend)
  peer.load_state_dict(torch.load(folder / 'model.pth', weights_only=True))
  return peer


def _fused_attention(attention, x, grid):
  """Like torch_peer.attend, with the relative positions as the bias of scaled_dot_product_attention."""
  import torch
  from torch.nn import functional

  from ditsam_jax.convert.torch_peer import segment_anything_modeling

  encoder = segment_anything_modeling().image_encoder
  batch, length, width = x.shape
  (h, w), prefix, heads = grid, length - grid[0] * grid[1], attention.num_heads
  q, k, v = attention.qkv(x).reshape(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
  rows = encoder.get_rel_pos(h, h, attention.rel_pos_h).to(q.dtype)
  columns = encoder.get_rel_pos(w, w, attention.rel_pos_w).to(q.dtype)
  image = q[:, :, prefix:].unflatten(2, (h, w))
  bias = (
    torch.einsum('bnhwd,hkd->bnhwk', image, rows)[..., :, None]
    + torch.einsum('bnhwd,wkd->bnhwk', image, columns)[..., None, :]
  )
  bias = functional.pad(bias.reshape(batch, heads, h * w, h * w), (prefix, 0, prefix, 0))
  out = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
  return attention.proj(out.transpose(1, 2).flatten(2))


def _MetaSam(config: DitSamConfig):
  """Returns segment_anything's encoder of this size, all blocks global, and its decoder with a sentence's tokens."""
  import torch
  from torch.nn import functional

  from ditsam_jax.convert.torch_peer import segment_anything_modeling

  class MetaSam(torch.nn.Module):
    """Computes logits from the image and ignores the sentence."""

    def __init__(self):
      super().__init__()
      modeling, encoder, decoder = segment_anything_modeling(), config.image_encoder, config.mask_decoder
      self.encoder = modeling.ImageEncoderViT(
        img_size=config.image_size,
        patch_size=encoder.patch_size,
        embed_dim=encoder.width,
        depth=encoder.depth,
        num_heads=encoder.heads,
        mlp_ratio=encoder.mlp_ratio,
        out_chans=decoder.width,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=0,
      )
      self.prompts = modeling.PromptEncoder(decoder.width, (config.grid,) * 2, (config.image_size,) * 2, 16)
      self.decoder = modeling.MaskDecoder(
        transformer_dim=decoder.width,
        transformer=modeling.TwoWayTransformer(
          depth=decoder.depth, embedding_dim=decoder.width, mlp_dim=decoder.mlp_width, num_heads=decoder.heads
        ),
      )
      self.sentence = torch.nn.Parameter(torch.randn(1, config.max_text_tokens, decoder.width))

    def forward(self, images, token_ids, token_mask):
      embedding = self.encoder(images)
      dense = self.prompts.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, config.grid, config.grid)
      pe = self.prompts.get_dense_pe()
      masks = torch.cat(
        [self.decoder(embedding[i : i + 1], pe, self.sentence, dense, False)[0] for i in range(len(images))]
      )
      return {'logits': functional.interpolate(masks, images.shape[-2:], mode='bilinear', align_corners=True)[:, 0]}

  torch.manual_seed(0)
  return MetaSam()
