"""Web page and HTTP API of `python -m ditsam_jax.serve`."""
