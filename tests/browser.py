"""A headless Chromium that reaches nothing but this machine."""

import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


def chromium(url, folder, *arguments, milliseconds=5000):
    """Open a page, let its clock run for so long, and return what Chromium prints.

    Args:
        url: of the page.
        folder: for Chromium's own files.
        arguments: what to do with the page: --dump-dom, --screenshot=PATH.
        milliseconds: how long; the page's clock runs ahead while it waits for nothing.
    """
    command = (
        PROGRAM,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1280,2400",
        "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        f"--user-data-dir={folder}",
        f"--virtual-time-budget={milliseconds}",
        *arguments,
        url,
    )
    environment = os.environ | {"HOME": str(folder)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def colours(picture):
    """{(red, green, blue): how many pixels} of a PNG."""
    from PIL import Image

    image = Image.open(picture).convert("RGB")
    return {colour: count for count, colour in image.getcolors(image.width * image.height)}
