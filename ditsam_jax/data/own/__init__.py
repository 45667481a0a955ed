"""Users' own pictures, sentences and masks: reads common formats and prepares the record format of all data sets.

Worker processes import this package, so this file imports nothing: TensorFlow Datasets alone would take seconds.
"""
