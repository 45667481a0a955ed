"""Flax NNX modules: SAM's encoders and decoder, BERT, the fusions."""
