"""Prepares any data set from files: problems by kind, masks, images, the TFDS writer.

Worker processes import this package, so this file imports nothing: TensorFlow Datasets alone would take seconds.
"""
