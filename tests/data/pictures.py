"""Pictures of random pixels in folders: no two are equal."""

import zlib

import numpy as np
from PIL import Image


def write(folder, count=3, suffix=".png", size=(12, 12)):
    """Write `count` pictures into a folder: 0.png, 1.png, …"""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        path = folder / f"{index}{suffix}"
        rng = np.random.default_rng(zlib.crc32(str(path).encode()))
        image = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        image.save(path, "JPEG" if suffix in (".jpe", ".jfif") else None)


def write_tree(folder, tree):
    """Write the pictures of a tree, {path of a folder below `folder`: number of pictures}; returns `folder`."""
    for name, count in tree.items():
        write(folder / name, count)
    return folder
