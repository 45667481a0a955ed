"""Flax NNX modules: SAM's encoders and decoder, BERT, and the fusions."""
