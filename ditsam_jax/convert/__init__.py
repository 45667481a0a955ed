"""Converts weights from and to PyTorch. The commands need the extra `convert`."""
