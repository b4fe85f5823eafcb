"""Tables and numbers in README.md and docs/ that come from committed JSON: marked blocks, filled by `regbench docs`.

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`; `tables.BLOCKS` gives its content. `regbench check` fails
if a block differs from its source, so no number in a block is typed by hand.
"""

import datetime
import itertools
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regbench import files
from regbench.errors import UserError
from regbench.report import results, tracked
from regbench.review import git, tables

BLOCK = re.compile(r"<!-- (?P<name>[a-z0-9_]+) -->\n.*?<!-- /(?P=name) -->", re.DOTALL)


def fill() -> list[Path]:
    """Rewrite every block of every page. Return the pages that changed.

    If report.json has changed since `docs/results.json` was written, this machine, date and commit are recorded there.

    Raises:
        UserError: a source is missing or damaged, or a block has an unknown name.
    """
    if results.PATH.exists() and tables.MADE.parent.is_dir():
        md5 = tables.md5(results.PATH)
        if _noted() != md5:
            files.write_json(tables.MADE, {"report_md5": md5} | made_here())
    changed = []
    for path in pages():
        before = path.read_text(encoding="utf-8")
        if (after := filled(before, path)) != before:
            path.write_text(after, encoding="utf-8")
            changed.append(path)
    return changed


def _noted() -> str | None:
    """MD5 of the report.json that `docs/results.json` describes; None if the latter is missing or damaged."""
    try:
        return tables.read(tables.MADE).get("report_md5")
    except UserError:
        return None


def stale() -> Iterator[str]:
    """One message for each page with a block that differs from its source."""
    for path in pages():
        text = tracked.text(path.read_bytes(), path, tracked.CONFLICT_IN_PAGE)
        if wrong := [found["name"] for found in BLOCK.finditer(text) if found[0] != _block(found["name"], path)]:
            yield f"{path}: {', '.join(wrong)} is not what the committed JSON says; run `make docs`"


def uncommitted() -> list[str]:
    """Pages whose blocks are missing or stale in the last commit, and `docs/results.json` if it is not committed."""

    def is_committed(path: Path) -> bool:
        text = (git.blob("HEAD", path) or b"").decode(errors="replace")
        return not BLOCK.search(path.read_text(encoding="utf-8")) or (bool(text) and filled(text, path) == text)

    return [*map(str, itertools.filterfalse(is_committed, pages())), *git.uncommitted([tables.MADE])]


def pages() -> list[Path]:
    """README.md and the pages under docs/, if they exist."""
    return [path for path in (Path("README.md"), *sorted(Path("docs").rglob("*.md"))) if path.exists()]


def filled(text: str, path: Path) -> str:
    """A page's text with its blocks filled."""
    return BLOCK.sub(lambda found: _block(found["name"], path), text)


def _block(name: str, page: Path) -> str:
    if name not in tables.BLOCKS:
        raise UserError(f"{page} has a block of an unknown name, {name}; known: {', '.join(tables.BLOCKS)}")
    return f"<!-- {name} -->\n{tables.BLOCKS[name]()}\n<!-- /{name} -->"


def made_here() -> dict[str, Any]:
    """This machine, today's date and the current commit."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": gpu(),
        "date": datetime.date.today().isoformat(),
        "commit": (git.commit("HEAD") or "")[:7],
    }


def processor() -> str:
    """The model name of the processor, as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def gpu() -> str | None:
    """The name of the machine's first NVIDIA GPU, or None."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
