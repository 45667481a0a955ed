"""The page and the HTTP API of `python -m ditsam_jax.serve`."""
