"""Prediction: the inference engine and its front ends."""
