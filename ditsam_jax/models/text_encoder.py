"""BERT (arXiv 1810.04805), equivalent to Hugging Face's BertModel without pooling: returns the last layer's states."""

import jax
import jax.numpy as jnp
from flax import nnx

from ditsam_jax.models import layers
from ditsam_jax.models.config import TextEncoderConfig
from ditsam_jax.parallel.activations import FSDP, axis_size, shard, shard_rows

EPSILON = 1e-12
PADDING = 0  # the id of [PAD]


def _linear(in_features: int, out_features: int, rngs: nnx.Rngs) -> layers.Linear:
  return layers.Linear(in_features, out_features, kernel_init=nnx.initializers.normal(0.02), rngs=rngs)


class Embeddings(nnx.Module):
  """Token, position and type embeddings: ids [B, T] -> [B, T, C]."""

  def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
    def table(rows):
      return nnx.Embed(rows, config.width, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)

    self.word_embeddings = table(config.vocab_size)
    self.position_embeddings = table(config.max_positions)
    self.token_type_embeddings = table(2)
    self.norm = layers.LayerNorm(config.width, EPSILON)
    self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

  def __call__(self, token_ids: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    positions = self.position_embeddings.embedding[: token_ids.shape[1]]
    words = self._words(token_ids)
    # Padded positions act as text, but BertModel never trains the row of [PAD] (nn.Embedding's padding_idx).
    words = jnp.where((token_ids == PADDING)[..., None], jax.lax.stop_gradient(words), words)
    x = words + positions + self.token_type_embeddings.embedding[0]
    return self.dropout(shard_rows(self.norm(x)), rngs=rngs)

  def _words(self, token_ids: jax.Array) -> jax.Array:
    """[B, T] -> [B, T, C], in the table's type, unlike calling nnx.Embed.

    `fsdp` shards the table's channels. Each device looks up its channels of all rows and exchanges them, so neither the
    table nor its gradient is moved, which are hundreds of times larger.
    """
    table = self.word_embeddings.embedding
    if axis_size(FSDP) == 1 or table.shape[1] % axis_size(FSDP):
      return table[token_ids]
    return shard_rows(shard(table[shard(token_ids, None, None)], None, None, FSDP))


class Layer(nnx.Module):
  """One post-norm transformer layer, [B, T, C] -> [B, T, C]."""

  def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
    width = config.width
    self.heads = config.heads
    self.query = _linear(width, width, rngs)
    self.key = _linear(width, width, rngs)
    self.value = _linear(width, width, rngs)
    self.attention_output = _linear(width, width, rngs)
    self.attention_norm = layers.LayerNorm(width, EPSILON)
    self.intermediate = _linear(width, config.mlp_width, rngs)
    self.output = _linear(config.mlp_width, width, rngs)
    self.output_norm = layers.LayerNorm(width, EPSILON)
    self.dropout = nnx.Dropout(config.dropout, rngs=rngs)

  def __call__(self, x: jax.Array, bias: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
    def drop(y):
      return self.dropout(y, rngs=rngs)

    q, k, v = (layers.split_heads(project(x), self.heads) for project in (self.query, self.key, self.value))
    attended = layers.merge_heads(layers.dot_product_attention(q, k, v, bias, drop))
    x = self.attention_norm(x + drop(self.attention_output(attended)))
    return shard_rows(self.output_norm(x + drop(self.output(layers.gelu(self.intermediate(x))))))


class TextEncoder(nnx.Module):
  """BERT without pooler. Padding is masked as keys, but padded positions have states too, which DIT uses."""

  def __init__(self, config: TextEncoderConfig, *, rngs: nnx.Rngs):
    self.embeddings = Embeddings(config, rngs=rngs)
    self.layers = nnx.List(Layer(config, rngs=rngs) for _ in range(config.depth))

  def __call__(self, token_ids: jax.Array, token_mask: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
    """Computes the text features.

    Args:
      token_ids: int [B, T].
      token_mask: 0/1 [B, T], 0 at padding.
      rngs: a 'dropout' stream for this call, in train mode; None uses the module's own.

    Returns:
      [B, T, C], in the type of the weights.
    """
    x = self.embeddings(token_ids, rngs)
    bias = jnp.where(token_mask[:, None, None, :] > 0, 0.0, jnp.finfo(x.dtype).min).astype(x.dtype)
    for layer in self.layers:
      x = layer(x, bias, rngs)
    return x
