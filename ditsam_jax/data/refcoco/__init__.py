"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: prepares the official downloads in the record format of all data sets.

Worker processes import this package, so this file imports nothing: TensorFlow Datasets alone would take seconds.
"""
