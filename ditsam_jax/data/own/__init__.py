"""Users' own pictures, sentences and masks: from the formats that people have to the record that all data sets share.

Worker processes import from here, so nothing is imported: TensorFlow Datasets alone would take them seconds.
"""
