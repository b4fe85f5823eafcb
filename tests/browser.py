"""A headless Chromium that can reach only this machine."""

import os
import shutil
import subprocess

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, NAMES)), None)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


def chromium(url, folder, *arguments, milliseconds=5000):
    """Open a page, let its clock run for some time, and return what Chromium prints.

    Args:
        url: of the page.
        folder: for Chromium's own files.
        arguments: what to do with the page: --dump-dom, --screenshot=PATH.
        milliseconds: time on the page's clock; this clock runs ahead of real time while no request is pending.
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
