"""Tiny experiments one after another, with random valid params: do memory, disk or temporary files grow?

    PYTHONPATH=src:tests python tests/soak.py --experiments 30

Prints JSON: how many files of each kind there are after each third of the experiments and how large they are, and the
peak memory of the experiments' processes. Fails if an experiment fails, or if unwanted files are left.
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
from pathlib import Path

import killed
from scratch import copy_project, tiny_params, write_image_folder

WANTED = {
    "results": ("runs", "plans", "prepared", "metrics", "plots", "report.md", "report.json"),
    "cache": (".dvc/cache/files",),  # outputs by content: `dvc gc -w` keeps those of the workspace
    "run cache": (".dvc/cache/runs",),  # the outputs of each stage with each input: going back trains nothing
    "scratch": (".regbench", ".dvc/tmp"),
    "git": (".git",),  # a commit for each experiment, in refs/exps: `dvc exp remove -A` and `git gc`
}


def random_changes(chance):
    """`-S` options of an experiment that trains and reports in seconds."""
    kinds = ("l1", "l2", "orthogonal", "weight_decay", "proximal_l1")
    strength, scope = 10 ** chance.uniform(-6, -2), chance.choice(("all", "backbone", "head"))
    return [
        f"++reg.tried={{{chance.choice(kinds)}: {strength:.2g}, scope: {scope}}}",
        f"train.learning_rate={chance.choice((0.01, 0.05, 0.1, 5.0))}",
        f"train.batch_size={chance.choice((8, 16, 40))}",
        f"train.epochs={chance.choice((1, 2))}",
        f"train.schedule={chance.choice(('constant', 'cosine'))}",
        f"train.momentum={chance.choice((0.0, 0.9))}",
        f"train.flip={chance.choice(('true', 'false'))}",
        f"train.batch_norm_images={chance.choice((0, 32))}",
        f"model.batch_norm={chance.choice(('true', 'false'))}",
        f"data.image_size={chance.choice((32, 32, 40))}",
        f"data.seed={chance.choice((0, 0, 1))}",
    ]


def sizes(folder):
    """{kind of file: {"files": how many, "kb": kilobytes}} in the repository."""
    found = {}
    for kind, roots in WANTED.items():
        files = [path for root in roots for path in [folder / root, *(folder / root).rglob("*")] if path.is_file()]
        found[kind] = {"files": len(files), "kb": sum(path.stat().st_size for path in files) >> 10}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiments", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0, help="of the params")
    arguments = parser.parse_args()
    chance, taken, diverged = random.Random(arguments.seed), {}, 0
    with tempfile.TemporaryDirectory(prefix="regbench-soak-") as scratch:
        temporary = Path(scratch) / "tmp"
        temporary.mkdir()
        os.environ["TMPDIR"] = str(temporary)
        os.environ["FRESH"] = "1"  # no forks of preloaded.py: this process could not measure their memory
        images = write_image_folder(Path(scratch) / "images")
        few = {"data.train_images": 80, "data.validation_images": 20, "data.test_images": 20, "model.width": 0.1}
        params = tiny_params(images, **few, **{"evaluate.pruning": [0.5]})
        params["reg"] = {"none": 0, "tried": {"l2": 0.001}}
        repository = copy_project(Path(scratch) / "project", params)
        for number in range(1, arguments.experiments + 1):
            changes = [option for change in random_changes(chance) for option in ("-S", change)]
            repository.dvc("exp", "run", *changes)
            diverged += sum("diverged" in row for row in json.loads(repository.read("metrics/summary.json")).values())
            if number % max(1, arguments.experiments // 3) == 0:
                taken[f"after {number}"] = sizes(repository.folder) | {
                    # The maximum over all processes so far, so it shows if any of them grows.
                    "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
                }
                print(number, json.dumps(taken[f"after {number}"]), file=sys.stderr, flush=True)
        left = killed.leftovers(repository) + sorted(path.name for path in temporary.iterdir())
        repository.dvc("exp", "remove", "-q", "-A")
        repository.dvc("gc", "-q", "-w", "-f")
        taken["after dvc gc -w"] = sizes(repository.folder)
    print(
        json.dumps({"experiments": arguments.experiments, "diverged": diverged, **taken, "left_over": left}, indent=2)
    )
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
