"""Saved models, pictures, files that appear only when they are complete."""
