"""Predictions in bulk: what to segment, in which files results go, what is done already."""
