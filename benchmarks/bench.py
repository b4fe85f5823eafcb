"""`make bench`: regbench beside the article's way, alternating, in one run; writes benchmarks/results.json.

Each measurement is a process of its own (`benchmarks/measure.py`), so that threads, memory and start-up are that
side's alone. Nothing else should run on the machine meanwhile. Medians, with the lowest and highest of n.
"""

import argparse
import datetime
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
sys.path.insert(0, str(ROOT / "tests"))

from conftest import copy_project  # noqa: E402

RESULTS = ROOT / "benchmarks/results.json"
SIZES = (
    # image size, batch size, training images, validation images, rounds
    (32, 32, 16_000, 2_000, 3),
    (32, 128, 16_000, 2_000, 3),
    (96, 64, 1_280, 160, 3),
    (224, 16, 320, 40, 3),
)
SINGLE = ("pipeline", "recording", "limit", "agreement")


def spread(values):
    """{"median", "low", "high", "n"} of some numbers."""
    return {
        "median": round(statistics.median(values), 4),
        "low": round(min(values), 4),
        "high": round(max(values), 4),
        "n": len(values),
    }


def python(*arguments, cwd=ROOT, **environment):
    """Run a script; its last line of output, as JSON where it is, and the seconds it took."""
    started = time.time()
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment | {"STARTED": str(started)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, arguments))} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    return (json.loads(last) if last.startswith(("{", "[")) else last), time.time() - started


def say(text):
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", flush=True)


def copy(folder, changes):
    """A scratch repository with the committed params, but for `changes`: {section: {key: value}}."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    for section, values in changes.items():
        params[section] |= values
    return copy_project(folder, params).folder


def trainings(data):
    """Steps, epochs, start and memory of one training: the article's way, ours, and PyTorch where it is."""
    table = []
    ways = ["article", "regbench"]
    if subprocess.run([sys.executable, "-c", "import torch"], capture_output=True).returncode == 0:
        ways.append("pytorch")
    for size, batch, train_images, validation_images, rounds in SIZES:
        measured = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                options = (size, batch, train_images, validation_images)
                measured[way].append(python("benchmarks/measure.py", way, data, *options)[0])
        row = {"image_size": size, "batch_size": batch, "images": train_images, "validation": validation_images}
        for way in ways:
            runs = measured[way]
            row[way] = {
                # The median step of each process, and over processes the median of those.
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


def comparison(folder):
    """The default comparison end to end: the article's three trainings in a row, then `make repro`'s way."""
    _, prepare_seconds = python("stages/prepare.py", cwd=folder)
    names = list(yaml.safe_load((folder / "params.yaml").read_text())["reg"])
    article = [python(ROOT / "benchmarks/article.py", name, 0, cwd=folder)[1] for name in names]
    say(f"the article's way: {sum(article):.0f} s")
    shutil.rmtree(folder / "data")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    started = time.time()
    for command in (["bash", "stages/side_by_side.sh"], [sys.executable, "-m", "regbench.summary"]):
        subprocess.run(
            command, cwd=folder, check=True, capture_output=True, env=os.environ | {"PYTHONPATH": "src", "PATH": path}
        )
    ours = time.time() - started
    say(f"regbench, from prepare to the table: {ours:.0f} s")

    no_op = [python("-m", "dvc", "repro", "--quiet", cwd=folder)[1] for _ in range(5)]
    report = [python("stages/report.py", cwd=folder)[1] for _ in range(3)]
    return {
        "epochs": yaml.safe_load((folder / "params.yaml").read_text())["train"]["epochs"],
        "article_seconds": [round(seconds, 1) for seconds in article],
        "regbench_seconds": round(ours, 1),
        "prepare_seconds_of_it": round(prepare_seconds, 1),
        "ratio": round(sum(article) / ours, 2),
        "n": 1,
        "no_op_repro_seconds": spread(no_op),
        "report_seconds": spread(report),
    }


def preparing(folder):
    """Seconds to prepare all 60,000 images, from TFDS's folder and from nothing."""
    again = [python("stages/prepare.py", cwd=folder)[1] for _ in range(3)]
    with tempfile.TemporaryDirectory() as empty:
        fresh = python("stages/prepare.py", cwd=folder, TFDS_DATA_DIR=empty)[1]
    return {"from_tfds_seconds": spread(again), "download_included_seconds": round(fresh, 1)}


def processor():
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


PARTS = ("prepare", "comparison", "trainings", "all_of_cifar10", "larger_than_memory", *SINGLE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"only these; all by default: {', '.join(PARTS)}")
    parser.add_argument("--epochs", type=int, help="of the comparison, instead of those in params.yaml")
    arguments = parser.parse_args()
    parts = arguments.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    machine = {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as scratch:
        whole = copy(Path(scratch) / "all images", {"data": {"train_images": None, "validation_images": "test"}})
        data = whole / "data"
        if set(parts) - {"prepare", "comparison", "larger_than_memory"}:
            python("stages/prepare.py", cwd=whole)
        changes = {"train": {"epochs": arguments.epochs}} if arguments.epochs else {}
        for part in parts:
            if part == "prepare":
                measured = preparing(whole)
            elif part == "comparison":
                measured = comparison(copy(Path(scratch) / "default", changes))
            elif part == "trainings":
                measured = {"table": trainings(data)}
            elif part == "all_of_cifar10":
                measured = python("benchmarks/measure.py", "regbench", data, 32, 32, 50_000, 10_000, 1)[0]
            elif part == "larger_than_memory":
                measured = python("benchmarks/larger_than_memory.py")[0]
            else:
                measured = python("benchmarks/measure.py", part, data, 32, 32, 16_000, 2_000)[0]
            say(f"{part}: {json.dumps(measured)}")
            results[part] = {"date": datetime.date.today().isoformat(), "machine": machine} | measured
            # After each part, so that a run that is cut off keeps what it has.
            RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    show(results)


def show(results):
    """Print the results as Markdown, for the README."""
    print("\n| image, batch | median of processes | article's way | regbench | ratio |\n|---|---|---|---|---|")
    units = {"step_ms": "step, ms", "epoch_seconds": "epoch, s", "first_step_seconds": "first step, s"}
    for row in results.get("trainings", {}).get("table", ()):
        for key, unit in units.items():
            sides = (row[way][key] for way in ("article", "regbench"))
            texts = [f"{side['median']:.1f} ({side['low']:.1f}–{side['high']:.1f})" for side in sides]
            print(
                f"| {row['image_size']} px, {row['batch_size']} | {unit} | {' | '.join(texts)} | {row['ratio'][key]} |"
            )
    if whole := results.get("comparison"):
        article, ours = sum(whole["article_seconds"]), whole["regbench_seconds"]
        print(f"| whole comparison, {whole['epochs']} epochs | s | {article:.0f} | {ours:.0f} | {whole['ratio']} |")
    print(f"\nEverything else: {RESULTS.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
