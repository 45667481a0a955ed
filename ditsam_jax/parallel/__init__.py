"""Meshes, where weights and activations lie on them, and several hosts."""
