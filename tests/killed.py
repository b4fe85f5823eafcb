"""SIGKILL in the middle of `dvc repro`, again and again: is every result the same as of a run that nobody killed?

A scratch repository at a tiny size. One run is left alone. Others are killed, DVC and all it started, once in each
stage, at a random moment between the line that announces it and the next; `dvc repro` is started anew after each.
`test_killed.py` does it once; for more, run this file:

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
"""Names of what is only there while a stage is at work."""


def project(folder, images):
    """A scratch repository with one run of a second or so, in epochs of a twentieth."""
    sizes = {"data.train_images": 64, "data.validation_images": 20, "data.test_images": 20, "train.batch_size": 16}
    model = {"model.network": "small_cnn", "train.epochs": 8, "evaluate.pruning": [0.5], "report.baseline": None}
    params = tiny_params(images, **sizes, **model)
    params["reg"] = {"l2": 0.001}
    return copy_project(folder, params)


def repro(repository):
    """Start `dvc repro` in a process group of its own."""
    return repository.start("python", "-m", "dvc", "repro")


def announced(line):
    """The stage that a line of DVC's says is running, without its run; None for other lines."""
    found = re.search(r"Running stage '([a-z]+)", line)
    return found and found[1]


def timed(repository):
    """Run to the end; how long each stage took, DVC's own work included, in seconds."""
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
    """Start `dvc repro` and send a signal to all of its group `delay` seconds after a stage was announced.

    Returns:
        (the stage that was running, or None where all had ended before; what was printed)
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
    """The processes that a process started, on Linux."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def results(repository):
    """{path: SHA-256} of all that the pipeline made."""
    folder, found = repository.folder, {}
    for root in ("plans", "prepared", "runs", "metrics", "plots", "report.md", "report.json"):
        for path in (folder / root).rglob("*") if (folder / root).is_dir() else [folder / root]:
            if path.is_file():
                found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def leftovers(repository):
    """Files that only work in progress should have."""
    found = [path for pattern in LEFTOVERS for path in repository.folder.rglob(pattern)]
    found += (repository.folder / ".regbench/checkpoints").glob("*")
    return sorted(str(path.relative_to(repository.folder)) for path in found)


def compare(expected, repository):
    """What differs from the results of the untouched run, a line each."""
    found = results(repository)
    lines = [f"{path}: missing" for path in expected.keys() - found.keys()]
    lines += [f"{path}: should not be there" for path in found.keys() - expected.keys()]
    lines += [f"{path}: other content" for path in expected.keys() & found.keys() if expected[path] != found[path]]
    return sorted({*lines, *(f"{path}: left over" for path in leftovers(repository))})


def round_of_kills(template, folder, seconds, chance):
    """Kill once in each stage, then run to the end; (the repository, kills by stage)."""
    shutil.copytree(template, folder)
    repository, kills = Repository(folder), Counter()
    for stage in STAGES:
        running, _ = stop(repository, stage, chance.uniform(0, seconds[stage]), signal.SIGKILL)
        if running:
            kills[running] += 1
        # As `make repro` does first: where a kill cuts off DVC's writing of dvc.lock, DVC itself refuses to continue.
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
