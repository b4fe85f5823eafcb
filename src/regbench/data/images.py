"""Read image files of several formats as arrays; every damaged file is named."""

import contextlib
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from regbench.data.source import LINES, NEW_LINE, counted, listed
from regbench.errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""Only these are tried, whatever a file's name says: Pillow knows about 40 more, and runs Ghostscript for one."""

DAMAGED = (OSError, ValueError, TypeError, SyntaxError, EOFError, IndexError, KeyError, struct.error, zlib.error)
"""What Pillow raises on a damaged file, depending on its format and on where the damage is."""


LYING = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""


class DamagedImageError(UserError):
    """An image file can't be read."""


def read(file: Path, channels: int) -> np.ndarray:
    """Read an image file as uint8 [H, W, channels], turned as EXIF says."""
    with opened(file) as image:
        if image.format == "TIFF" and image.mode == "I":
            raise ValueError("its values are int32; only 8-bit and 16-bit images are supported")
        return pixels(ImageOps.exif_transpose(image), channels)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Image.Image]:
    """Open an image file; raise a `DamagedImageError` with its name if opening or reading it fails."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata and of more than 90 million pixels; it refuses twice as many.
            warnings.simplefilter("ignore")
            # Not by name: Pillow 13 would memory-map an uncompressed TIFF, and scramble it if it has to be turned.
            with file.open("rb") as data, Image.open(data, formats=FORMATS) as image:
                yield image
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DamagedImageError(f"{file} can't be read as an image: its format is not one of {known}") from None
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise DamagedImageError(f"{file} can't be read as an image ({error})") from None


@contextlib.contextmanager
def all_damage_told(files: Sequence[Path]) -> Iterator[None]:
    """If one image is damaged, read all files, so that one message names all damaged ones."""
    try:
        yield
    except DamagedImageError as error:
        problems = list(_damage(files)) or [str(error)]
        raise UserError(
            f"data.dataset: {counted(len(problems), 'damaged image')}; repair them or move them away:\n  "
            + listed(problems, LINES, NEW_LINE)
        ) from None


def _damage(files: Sequence[Path]) -> Iterator[str]:
    for file in files:
        try:
            read(file, channels=1)
        except DamagedImageError as error:
            yield str(error)


def shape_of(image: Image.Image) -> tuple[int, int]:
    """(height, width), turned as EXIF says. For a TIFF, Pillow's size is already turned."""
    turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in LYING
    return image.size if turned else image.size[::-1]


def channels_of(image: Image.Image) -> int:
    """1 for grey images, else 3."""
    return 1 if image.mode in ("1", "L", "LA", "La") or image.mode.startswith(("I", "F")) else 3


def pixels(image: Image.Image, channels: int) -> np.ndarray:
    """Convert an image to uint8 [H, W, channels]; transparent pixels show white, 16-bit values become 8-bit."""
    if image.mode.startswith(("I", "F")):
        deep = np.asarray(image)
        if deep.dtype.kind == "f" or deep.min() < 0 or deep.max() > 0xFFFF:
            raise ValueError(f"its values are {deep.dtype}; only 8-bit and 16-bit images are supported")
        image = Image.fromarray((deep.astype(np.uint32) >> 8).astype(np.uint8))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    values = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return values[..., None] if channels == 1 else values


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, C] → [height, width, C], bilinear, antialiased. Pillow uses integers: the same on any machine."""
    grey = image.shape[-1] == 1
    values = Image.fromarray(image[..., 0] if grey else image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(values)[..., None] if grey else np.asarray(values)
