"""Run configs: fields, recipes, files, command-line changes, and lengths."""

from ditsam_jax.config.recipes import named, recipe

__all__ = ['named', 'recipe']
