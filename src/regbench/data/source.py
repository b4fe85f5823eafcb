"""What every source of images has in common."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

LINES = 12
"""How many files or folders a message lists at most."""

NEW_LINE = "\n  "


@dataclass(frozen=True)
class Source:
    """A labelled set of images. Labels are in memory; images are read one by one, so they may take more than memory.

    Attributes:
        name: what `data.dataset` called it.
        origin: which collection and version; the same whatever way the bytes came.
        classes: class names; a label is an index into them.
        shape: (height, width) where all images share it, else None.
        channels: 1 or 3.
        labels: int64 labels [N] of each split, by split name.
        files: where each image of a split came from, in words, by split name.
        read: (split, sorted indices) → iterator over uint8 images [H, W, channels], in that order.
        notes: what was left out and what is strange, a line each.
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
