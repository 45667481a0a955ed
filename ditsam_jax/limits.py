"""Upper bounds on input; anything larger is refused before any work."""

MAX_PIXELS = 89_478_485  # of an image; Pillow's own bound for "could be a decompression bomb": 1 GiB / 4 / 3
MAX_SENTENCES = 1_000  # of one object
MAX_OBJECTS = 1_000  # of one image
MAX_PROCESSES = 64  # that one command starts, whatever the number of cores
MAX_THREADS = 256
