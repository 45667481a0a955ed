"""Shared by all data that is prepared from files: problems by kind, masks, images, the TFDS writer.

Worker processes import from here, so nothing is imported: TensorFlow Datasets alone would take them seconds.
"""
