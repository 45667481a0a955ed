"""Coordinates and masks, without a model."""
