"""The config of a run: its fields, recipes, files, changes from the command line, lengths."""

from ditsam_jax.config.recipes import named, recipe

__all__ = ['named', 'recipe']
