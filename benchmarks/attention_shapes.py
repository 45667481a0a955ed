"""Attention shapes of the presets: batch size, heads, channels per head, side of the grid, text tokens."""

SHAPES = {
  'vit_b-512': (8, 12, 64, 32, 20),
  'vit_l-512': (8, 16, 64, 32, 20),
  'vit_h-512': (8, 16, 80, 32, 20),
  'vit_b-1024': (1, 12, 64, 64, 20),
  'vit_l-1024': (1, 16, 64, 64, 20),
  'vit_h-1024': (1, 16, 80, 64, 20),
  'vit_b-window': (25, 12, 64, 14, 0),
  'vit_h-window': (25, 16, 80, 14, 20),
  'tiny': (64, 3, 32, 8, 12),
}
