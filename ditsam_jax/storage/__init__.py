"""Saved models, image files and atomic writes."""
