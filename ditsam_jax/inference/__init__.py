"""Prediction and its engine."""
