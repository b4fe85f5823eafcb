"""`make bench`: compare regbench with the article's way, alternating, in one run; writes benchmarks/results.json.

Each measurement is a process of its own (`benchmarks/measure.py`), so each side has its own
threads, memory and start-up. Nothing else should run on the machine meanwhile. Results are medians, with the lowest and
highest of n.
"""

import argparse
import datetime
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

import ablation  # noqa: E402
import gpu  # noqa: E402
from measure import spread  # noqa: E402
from scratch import copy_project  # noqa: E402

from regbench.review import blocks  # noqa: E402
from regbench.runner import worker  # noqa: E402

RESULTS = ROOT / "benchmarks/results.json"
SIZES = (
    # image size, batch size, training images, validation images, rounds
    (32, 32, 16_000, 2_000, 3),
    (32, 128, 16_000, 2_000, 3),
    (96, 64, 1_280, 160, 3),
    (224, 16, 320, 40, 3),
)
ARTICLES_BATCH = 32
SINGLE = ("pipeline", "limit", "agreement")


def python(*arguments, cwd=ROOT, plain=False, **environment):
    """Run a script. Returns its last line of output, parsed if it is JSON, and the seconds that it took.

    It runs in the environment that `regbench repro` gives its stages; with `plain`, in this process's own environment.
    """
    started = time.time()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=(os.environ if plain else worker.environment(1)) | environment | {"STARTED": str(started)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return (json.loads(last) if last.startswith(("{", "[")) else last), time.time() - started


def prepare(folder):
    """Write plans/ and prepared/ in a scratch repository; returns the seconds that prepared/ took."""
    python("stages/plan.py", cwd=folder)
    return python("stages/prepare.py", cwd=folder)[1]


def say(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", flush=True)


def copy(folder, changes):
    """A scratch repository with the committed params except for `changes`: {section: {key: value}}; its folder."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in changes.items():
        params[section] = params[section] | values if isinstance(values, dict) else values
    return copy_project(folder, params).folder


def trainings(data):
    """Steps, epochs, start and memory of one training: the article's way, ours, and PyTorch if it is installed."""
    table = []
    ways = ["article", "regbench"]
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        ways.append("pytorch")
    for size, batch, train_images, validation_images, rounds in SIZES:
        measured = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                options = (size, batch, train_images, validation_images)
                call = ("benchmarks/measure.py", way, data, *options)
                measured[way].append(python(*call, plain=way != "regbench")[0])
        row = {"image_size": size, "batch_size": batch, "images": train_images, "validation": validation_images}
        for way in ways:
            runs = measured[way]
            row[way] = {
                # The step of a process is its median step; here is the median over processes.
                key: spread([run[key] for run in runs])
                for key in ("step_ms", "epoch_seconds", "first_step_seconds", "peak_mb")
                if key in runs[0]
            }
        row["ratio"] = {
            key: round(row["article"][key]["median"] / row["regbench"][key]["median"], 2)
            for key in ("step_ms", "epoch_seconds", "first_step_seconds")
        }
        say(f"{size} px, batch {batch}: {json.dumps(row['ratio'])}")
        table.append(row)
    return table


def ablation_table(prepared, rounds):
    """Switch off each trick of `ablation.TRICKS` alone, alternating; changes against an A/A pair, in percent.

    A change above 0 is what the trick saves. The noise is the larger distance of either A from their common median.
    """
    size, batch, train_images, validation_images = 32, 64, 3_200, 400
    names = ["A", "A again", *ablation.TRICKS]
    measured = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            options = (size, batch, train_images, validation_images, 2, name)
            call = ("benchmarks/measure.py", "regbench", prepared, *options)
            measured[name].append(python(*call)[0])
        say(f"ablation, round {number + 1} of {rounds}")
    keys = ("step_ms", "epoch_seconds", "first_step_seconds")
    both = measured["A"] + measured["A again"]
    base = {key: statistics.median(run[key] for run in both) for key in keys}
    table = {
        name: {key: round(100 * (statistics.median(run[key] for run in runs) / base[key] - 1), 1) for key in keys}
        for name, runs in measured.items()
    }
    noise = {key: max(abs(table[name][key]) for name in ("A", "A again")) for key in keys}
    of = {"image_size": size, "batch_size": batch, "images": train_images, "validation": validation_images}
    return of | {"n": rounds, "base": base, "noise_percent": noise, "without_percent": table}


def repro(folder, *options):
    """Seconds of `regbench repro` in a scratch repository, from prepare to the table, with nothing cached."""
    for made in ("prepared", "plans", "runs", ".dvc/cache", ".regbench"):
        shutil.rmtree(folder / made, ignore_errors=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    return python("-m", "regbench", "repro", *options, cwd=folder, PYTHONPATH=str(folder / "src"))[1]


def comparison(folder, rounds):
    """The default comparison end to end: trainings the article's way and `regbench repro`, alternating.

    Each round trains the next regularizer the article's way, with the article's own batch size; the first of several
    rounds also with that of params.yaml. Its seconds are multiplied by the number of runs in the comparison, since all
    runs take equally long. Our seconds go from prepare to the table, everything included.
    """
    chosen = yaml.safe_load((folder / "params.yaml").read_text())
    runs = len(chosen["reg"]) * len(chosen["seeds"])
    article, ours = {ARTICLES_BATCH: [], chosen["train"]["batch_size"]: []}, []
    for number, name in zip(range(rounds), itertools.cycle(chosen["reg"]), strict=False):
        prepare_seconds = prepare(folder)
        for batch_size in article if number == 0 and rounds > 1 else [ARTICLES_BATCH]:
            call = (ROOT / "benchmarks/article.py", name, chosen["seeds"][0], "--batch-size", batch_size)
            article[batch_size].append(python(*call, cwd=folder, plain=True)[1])
            say(f"one training the article's way, batch {batch_size}: {article[batch_size][-1]:.0f} s")
        ours.append(repro(folder))
        say(f"regbench, {runs} runs from prepare to the table: {ours[-1]:.0f} s (round {number + 1} of {rounds})")
    no_op = [python("-m", "dvc", "repro", cwd=folder)[1] for _ in range(5)]
    report = [python("stages/report.py", cwd=folder)[1] for _ in range(3)]
    return {
        "runs": runs,
        "epochs": chosen["train"]["epochs"],
        "batch_size": chosen["train"]["batch_size"],
        "regbench_seconds": spread(ours),
        "prepare_seconds_of_it": round(prepare_seconds, 1),
        "article": [
            {
                "batch_size": batch_size,
                "seconds_a_run": spread(seconds),
                "ratio": spread([runs * a / b for a, b in zip(seconds, ours, strict=False)]),
            }
            for batch_size, seconds in article.items()
            if seconds
        ],
        "no_op_repro_seconds": spread(no_op),
        "report_seconds": spread(report),
    }


def preparing(folder):
    """Seconds to prepare all 60,000 images, from TFDS's folder and with the download."""
    again = [prepare(folder) for _ in range(3)]
    with tempfile.TemporaryDirectory() as empty:
        fresh = python("stages/prepare.py", cwd=folder, TFDS_DATA_DIR=empty)[1]
    return {"from_tfds_seconds": spread(again), "download_included_seconds": round(fresh, 1)}


def gpu_jobs(folder):
    """The default comparison on a GPU: as many runs at once as `regbench repro` chooses, and one after another."""
    seconds = {"as chosen": repro(folder), "one by one": repro(folder, "--jobs", 1)}
    return {"gpu": blocks.gpu(), "seconds": seconds, "ratio": round(seconds["one by one"] / seconds["as chosen"], 2)}


PARTS = ("prepare", "comparison", "trainings", "ablation", "kinds", "all_of_cifar10", "larger_than_memory", *SINGLE)
SCRIPTS = ("larger_than_memory", "dvc_at_scale", "cluster")
"""Parts that have a script of the same name."""
ALL = (*PARTS, "dvc_at_scale", "cluster", "gpu", "gpu_jobs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"parts to run; by default all except the last four: {', '.join(ALL)}"
    )
    parser.add_argument("--epochs", type=int, help="of the comparison, instead of those in params.yaml")
    parser.add_argument("--seeds", type=int, help="number of seeds in the comparison, instead of those in params.yaml")
    parser.add_argument(
        "--rounds", type=int, help="of the comparison, the ablation and the kinds; 3, 5 and 5 by default"
    )
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(ALL):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(ALL)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    made = blocks.made_here()
    this = {"processor": made["processor"], "cores": made["cores"], "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as scratch:
        whole = copy(Path(scratch) / "all images", {"data": {"train_images": None, "validation_images": "test"}})
        data = whole / "prepared"
        if set(parts) - {"comparison", "gpu_jobs", *SCRIPTS}:
            prepare(whole)
        changes = {"train": {"epochs": arguments.epochs}} if arguments.epochs else {}
        changes |= {"seeds": list(range(arguments.seeds))} if arguments.seeds else {}
        for part in parts:
            if part == "prepare":
                measured = preparing(whole)
            elif part == "comparison":
                measured = comparison(copy(Path(scratch) / "default", changes), arguments.rounds or 3)
            elif part == "trainings":
                measured = {"table": trainings(data)}
            elif part == "ablation":
                measured = ablation_table(data, arguments.rounds or 5)
            elif part == "kinds":
                measured = python("benchmarks/kinds.py", data, arguments.rounds or 5)[0]
            elif part == "all_of_cifar10":
                measured = python("benchmarks/measure.py", "regbench", data, 32, 32, 50_000, 10_000, 1)[0]
            elif part == "gpu":
                measured = gpu.table(data, worker.environment(1))
            elif part == "gpu_jobs":
                measured = gpu_jobs(copy(Path(scratch) / "on a GPU", changes))
            elif part in SCRIPTS:
                measured = python(f"benchmarks/{part}.py")[0]
            else:
                measured = python("benchmarks/measure.py", part, data, 32, 32, 16_000, 2_000)[0]
            say(f"{part}: {json.dumps(measured)}")
            record = {"date": made["date"], "commit": made["commit"], "machine": this} | measured
            if part == "comparison":  # one record for each make of processor
                record = [
                    *(it for it in results.get(part, []) if it["machine"]["processor"] != this["processor"]),
                    record,
                ]
            results[part] = record
            # After each part, so that a run that is cut off keeps the finished parts.
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    say("`make docs` writes the tables of docs/speed.md")


if __name__ == "__main__":
    main()
