"""What every source of images has in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LINES = 12
"""How many files or folders a message lists at most."""

NEW_LINE = "\n  "


@dataclass(frozen=True)
class Source:
    """A labelled set of images. Labels are in memory; images are read one by one, so they need not fit in memory.

    Attributes:
        name: the value of `data.dataset`.
        origin: "folder", or "TFDS" with dataset and version; the same however the files were obtained.
        classes: class names; a label is an index into them.
        shape: (height, width) where all images share it, else None.
        channels: 1 or 3.
        labels: int64 labels [N] of each split, by split name.
        files: by split name, a text for each image that says where it came from.
        read: (split, sorted indices) → iterator over uint8 images [H, W, channels], in that order.
        notes: one line for each thing that was left out or looks wrong.
    """

    name: str
    origin: str
    classes: tuple[str, ...]
    shape: tuple[int, int] | None
    channels: int
    labels: dict[str, np.ndarray]
    files: dict[str, Sequence[str]]
    read: Callable[[str, np.ndarray], Iterator[np.ndarray]]
    notes: tuple[str, ...] = ()


def counted(number: int, one: str, several: str | None = None) -> str:
    """A number and its noun, by default with an s: "1 image", "2,000 images"."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def listed(items: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first `most` items, and how many more there are."""
    more = [f"and {len(items) - most:,} more"] if len(items) > most else []
    return separator.join([*items[:most], *more])
