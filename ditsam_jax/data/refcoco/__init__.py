"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: from the official downloads to the record that all data sets share.

Worker processes import from here, so nothing is imported: TensorFlow Datasets alone would take them seconds.
"""
