"""Bulk prediction: requests, output files and resuming."""
