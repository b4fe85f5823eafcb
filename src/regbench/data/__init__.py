"""Where images come from, and how they lie on disk: `prepare` writes them, `arrays` reads them."""

SPLITS = ("train", "validation", "test")

EVALUATION_BATCH = 256
"""How many images are evaluated per step."""
