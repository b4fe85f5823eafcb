"""A clone of this repository to train in, with its own code first on the path."""

import os
import subprocess
import sys
from pathlib import Path

from regbench.report import results
from regbench.report.results import Report

ROOT = Path(__file__).resolve().parents[1]


def enter(folder: Path) -> str:
    """Clone the last commit to `folder`, unless it is there, and go there; the text of its params.yaml."""
    if not (folder / ".git").exists():
        run("git", "clone", "--quiet", str(ROOT), str(folder))
    os.chdir(folder)
    run("git", "checkout", "--quiet", "params.yaml")
    return Path("params.yaml").read_text()


def regbench(*arguments: object) -> None:
    """Call `regbench`."""
    run(sys.executable, "-m", "regbench", *map(str, arguments))


def rows() -> tuple[Report, dict[str, dict]]:
    """report.json, and of each of its rows what a table of several seeds needs."""
    report = results.read(results.PATH)
    kept = {"correct", "test", "test_sd", "difference", "p_corrected", "verdict", "gap"}
    return report, {name: row.model_dump(include=kept) for name, row in report.rows.items()}


def run(*command: str) -> None:
    """Run a command and show what it says."""
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path("src").resolve())}, check=True)
