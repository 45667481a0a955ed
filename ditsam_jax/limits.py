"""Upper bounds on input; anything larger is refused before any work."""

MAX_PIXELS = 89_478_485  # per image; Pillow's limit for decompression bombs, 1 GiB / 4 / 3
MAX_SENTENCES = 1_000  # per object
MAX_OBJECTS = 1_000  # per image
MAX_PROCESSES = 64  # per command, however many cores there are
MAX_THREADS = 256
