"""Coordinates and masks, independent of models."""
