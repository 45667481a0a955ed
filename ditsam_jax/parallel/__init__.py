"""Meshes, sharding of weights and activations, and several hosts."""
