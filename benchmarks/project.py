"""A clone of this repository to train in. Commands run in it with the clone's own code first on the path."""

import os
import subprocess
import sys
from pathlib import Path

from regbench.report import results
from regbench.report.results import Report

ROOT = Path(__file__).resolve().parents[1]


def enter(folder: Path) -> str:
    """Clone the last commit to `folder`, or bring the clone there to it, and change to it; the text of its params.yaml.

    What was trained in the clone stays in its cache.
    """
    if not (folder / ".git").exists():
        run("git", "clone", "--quiet", str(ROOT), str(folder))
    os.chdir(folder)
    run("git", "fetch", "--quiet", str(ROOT), "HEAD")
    run("git", "reset", "--quiet", "--hard", "FETCH_HEAD")
    return Path("params.yaml").read_text()


def regbench(*arguments: object) -> None:
    """Call `regbench`."""
    run(sys.executable, "-m", "regbench", *map(str, arguments))


def rows() -> tuple[Report, dict[str, dict]]:
    """report.json, and {regularizer: those values of its row that a table of several seeds needs}."""
    report = results.read(results.PATH)
    kept = {"correct", "test", "test_sd", "difference", "p_corrected", "verdict", "gap"}
    return report, {name: row.model_dump(include=kept) for name, row in report.rows.items()}


def run(*command: str) -> None:
    """Run a command and show what it prints."""
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path("src").resolve())}, check=True)
