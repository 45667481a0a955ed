"""Weights from and to PyTorch. Its commands need the extra `convert`."""
