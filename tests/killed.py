"""SIGKILL in the middle of `dvc repro`, again and again: is every result the same as without a kill?

In a tiny scratch repository, one `dvc repro` is left alone. In copies of it, DVC and all processes that it started are
killed once in each stage, at a random moment between the line that announces the stage and the next such line. After
each kill `dvc repro` is started again. `test_killed.py` does one such round; for more, run this file:

    PYTHONPATH=src:tests python tests/killed.py --kills 24
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from scratch import Repository, copy_project, tiny_params, write_image_folder

STAGES = ("plan", "prepare", "train", "evaluate", "report")
LEFTOVERS = ("*.partial", "partial.*", "*.npz")
"""Patterns of files that exist only while a stage runs."""


def project(folder, images):
    """A scratch repository with one run that takes about a second, in epochs of a twentieth of a second."""
    sizes = {"data.train_images": 64, "data.validation_images": 20, "data.test_images": 20, "train.batch_size": 16}
    model = {"model.network": "small_cnn", "train.epochs": 8, "evaluate.pruning": [0.5], "report.baseline": None}
    params = tiny_params(images, **sizes, **model)
    params["reg"] = {"l2": 0.001}
    return copy_project(folder, params)


def repro(repository):
    """Start `dvc repro` in a process group of its own."""
    return repository.start("python", "-m", "dvc", "repro")


def announced(line):
    """The stage that a line of DVC's output says is running, without its run; None for other lines."""
    found = re.search(r"Running stage '([a-z]+)", line)
    return found and found[1]


def timed(repository):
    """Run to the end; returns {stage: seconds it took}, DVC's own work included."""
    seconds, stage, since = {}, None, time.perf_counter()
    process = repro(repository)
    output = ""
    for line in process.stdout:
        output += line
        if name := announced(line):
            now = time.perf_counter()
            if stage:
                seconds[stage] = now - since
            stage, since = name, now
    if process.wait():
        raise RuntimeError(output)
    return seconds | {stage: time.perf_counter() - since}


def stop(repository, stage, delay, number):
    """Start `dvc repro` and send signal `number` to its process group, `delay` seconds after `stage` was announced.

    Returns:
        (the stage that was running, or None if all stages had ended before; what was printed)
    """
    process = repro(repository)
    running, output, timer = None, "", None

    def strike():
        os.killpg(process.pid, number)

    for line in process.stdout:
        output += line
        if name := announced(line):
            running = name
            if name == stage:
                timer = threading.Timer(delay, strike)
                timer.start()
    finished = process.wait() == 0
    if timer:
        timer.cancel()
    return (None if finished else running), output


def children(pid):
    """The ids of the processes that a process started, as text; Linux only."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def results(repository):
    """{path: SHA-256} of all files that the pipeline made."""
    folder, found = repository.folder, {}
    for root in ("plans", "prepared", "runs", "metrics", "plots", "report.md", "report.json"):
        for path in (folder / root).rglob("*") if (folder / root).is_dir() else [folder / root]:
            if path.is_file():
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(repository):
    """Files that should exist only while a stage runs, but are there."""
    found = [path for pattern in LEFTOVERS for path in repository.folder.rglob(pattern)]
    found += (repository.folder / ".regbench/checkpoints").glob("*")
    return sorted(str(path.relative_to(repository.folder)) for path in found)


def compare(expected, repository):
    """One line for each difference from the results of the untouched run."""
    found = results(repository)
    lines = [f"{path}: missing" for path in expected.keys() - found.keys()]
    lines += [f"{path}: should not be there" for path in found.keys() - expected.keys()]
    lines += [f"{path}: other content" for path in expected.keys() & found.keys() if expected[path] != found[path]]
    return sorted({*lines, *(f"{path}: left over" for path in leftovers(repository))})


def round_of_kills(template, folder, seconds, chance):
    """Kill once in each stage, then run to the end; returns (the repository, kills by stage)."""
    shutil.copytree(template, folder)
    repository, kills = Repository(folder), Counter()
    for stage in STAGES:
        running, _ = stop(repository, stage, chance.uniform(0, seconds[stage]), signal.SIGKILL)
        if running:
            kills[running] += 1
        # As `make repro` does first: if DVC is killed while it writes dvc.lock, it refuses to continue by itself.
        kills["dvc.lock mended"] += "dvc.lock" in repository.regbench("mend")
    repository.dvc("repro")
    return repository, kills


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=24, help="at least as many; a round has up to four")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    chance, kills, differences = random.Random(arguments.seed), Counter(), []
    with tempfile.TemporaryDirectory(prefix="regbench-killed-") as scratch:
        scratch = Path(scratch)
        images = write_image_folder(scratch / "images")
        template = project(scratch / "template", images).folder
        untouched = Repository(shutil.copytree(template, scratch / "untouched"))
        seconds = timed(untouched)
        expected = results(untouched)
        for number in itertools.count():
            if sum(kills[stage] for stage in STAGES) >= arguments.kills:
                break
            repository, counted = round_of_kills(template, scratch / "killed", seconds, chance)
            kills += counted
            differences += [f"round {number}: {line}" for line in compare(expected, repository)]
            print(f"round {number}: {dict(counted)}", file=sys.stderr, flush=True)
            shutil.rmtree(repository.folder)
    report = {
        "kills": sum(kills[stage] for stage in STAGES),
        "by_stage": {stage: kills[stage] for stage in STAGES},
        "dvc.lock mended": kills["dvc.lock mended"],
        "seconds_of_a_stage": {stage: round(value, 1) for stage, value in seconds.items()},
        "files_compared": len(expected),
        "differences": differences,
    }
    print(json.dumps(report, indent=2))
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
