"""How long DVC itself takes as the matrix grows: the project's own dvc.yaml, with stages that only write their files.

Prints JSON: the table of docs/scale.md, seconds of each command by number of train and evaluate stages. Every command
runs in a process of its own, as it does for a user; `--sizes` chooses the numbers. The first repro stops after
`--limit` seconds and says how far it came; all stages are then recorded in one go, so that the other commands find a
complete matrix. `benchmarks/bench.py dvc_at_scale` calls it and keeps the table.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from scratch import copy_project  # noqa: E402

REGULARIZERS = 5

STAGE = """
import json, os, pathlib, sys
stage, name = sys.argv[1], "-".join(sys.argv[2:])
def write(path, text):
    path = pathlib.Path(path); path.parent.mkdir(parents=True, exist_ok=True); path.write_text(text)
if stage == "prepare":
    for split in ("train", "validation", "test"):
        write(f"prepared/{split}/images.npy", "images")
elif stage == "report":
    write("report.md", "report")
    write("report.json", "{}")
    for figure in "accuracy corruptions effects layers learning_curves norms pruning reg_loss strength weights".split():
        write(f"plots/{figure}.png", "")
    write("plots/curves.csv", "regularizer,epoch,rev\\n")
    names = json.load(open("names.json"))
    write("metrics/summary.json", json.dumps({name: {metric: 0.5 for metric in "abcdef"} for name in names}))
else:
    names = ("evaluation.json", "confusion.csv", "layers.csv", "predictions.csv", "pruning.csv", "weights.csv")
    evaluation = [f"evaluation/{name}" for name in names]
    for file in {"train": ("model.keras", "history.csv"), "evaluate": evaluation}[stage]:
        write(f"runs/{name}/{file}", f"{name} {file}")
"""


def project(folder, stages):
    """The project with `stages` train and evaluate stages whose scripts are stubs; the repository and its runs."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    names = [f"r{index}" for index in range(REGULARIZERS)]
    params["reg"] = {name: {"l2": 10.0**-index} for index, name in enumerate(names)}
    params["seeds"] = seeds = list(range(stages // 2 // REGULARIZERS))
    params["report"]["baseline"] = names[0]
    repository = copy_project(folder, params)
    (folder / "stub.py").write_text(STAGE)
    for stage in ("prepare", "train", "evaluate", "report"):
        arguments = f"[sys.executable, 'stub.py', '{stage}', *sys.argv[1:]]"
        (folder / f"stages/{stage}.py").write_text(f"import os, sys\nos.execv(sys.executable, {arguments})\n")
    (folder / "names.json").write_text(json.dumps(names))
    repository.commit("stages that do nothing")
    return repository, [f"{name}-{seed}" for name in names for seed in seeds]


def seconds(repository, *arguments, limit=None):
    """The seconds that a dvc command takes; None if it ran longer than `limit` seconds."""
    started = time.monotonic()
    # In a process group of its own, so that a running stage is killed with it.
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        cwd=repository.folder,
        env=repository.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return None
    if process.returncode:
        sys.exit(f"dvc {' '.join(arguments)} ended with {process.returncode}:\n{output[-2000:]}")
    return round(time.monotonic() - started, 2)


def measure(folder, stages, limit):
    """{what is measured: its value, as text} for a matrix of `stages` stages; mostly seconds of a command."""
    repository, runs = project(folder, stages)
    remote = folder.parent / "remote"
    seconds(repository, "remote", "add", "--default", "store", str(remote))
    result = {}

    def time_of(words, *arguments, limit=None):
        taken = seconds(repository, *arguments, limit=limit)
        if taken is not None:
            result[words] = f"{taken:.0f}" if taken >= 10 else f"{taken:.1f}"
            return
        done = len(list(folder.glob("runs/*/model.keras"))) + len(list(folder.glob("runs/*/evaluation")))
        result[words] = f"{done} of {stages:,} in the first {limit} s"
        fill(folder, runs)
        seconds(repository, "repro", "--quiet")

    time_of("`dvc repro`, every stage run", "repro", "--quiet", limit=limit)
    repository.commit("results")
    result["size of dvc.lock, MB"] = f"{(folder / 'dvc.lock').stat().st_size / 1e6:.2f}"
    time_of("`dvc repro`, nothing to do", "repro", "--quiet")
    time_of("`dvc status`", "status")
    time_of("`dvc metrics diff`", "metrics", "diff", "HEAD~1")
    time_of("`dvc exp show`", "exp", "show", "--no-pager")
    seconds(repository, "push", "--quiet", "--run-cache")
    # No setting belongs to one run only. The next best is a strength: it makes all runs of one regularizer out of date.
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["reg"]["r2"] = {"l2": 0.5}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    targets = ("train@r2-0", "evaluate@r2-0")
    time_of(
        "`dvc repro -s`: plans, train and evaluate of one run, whole dvc.lock",
        *("repro", "--quiet", "--single-item", "plan", *targets),
    )
    push = ("push", "--quiet", "--run-cache")
    time_of("`dvc push --run-cache`, one run, whole dvc.lock", *push, *targets)
    # As on a node of a cluster: dvc.lock knows the plans, the images and the node's own runs.
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {name: lock["stages"][name] for name in ("plan", "prepare")}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / ".dvc/cache/runs")
    targets = ("train@r3-0", "evaluate@r3-0")
    time_of(
        "`dvc repro -s`: train and evaluate on a node of the cluster", "repro", "--quiet", "--single-item", *targets
    )
    time_of("`dvc push --run-cache`, the same on a node of the cluster", *push, *targets)
    return result


def fill(folder, runs):
    """Write the files that the stages would write, and record them all in dvc.lock in one go."""
    for run in runs:
        for stage in ("train", "evaluate"):
            subprocess.run([sys.executable, "stub.py", stage, run], cwd=folder, check=True)
    recorder = (
        "from dvc.repo import Repo\n"
        "with Repo() as repo, repo.lock:\n"
        "    stages = [s for s in repo.index.stages if s.name.partition('@')[0] in ('train', 'evaluate')]\n"
        "    for stage in stages:\n"
        "        stage.save(run_cache=True); stage.commit()\n"
        "    stages[0].dvcfile._dump_lockfile(stages)\n"
    )
    subprocess.run([sys.executable, "-c", recorder], cwd=folder, check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000], help="numbers of matrix stages")
    parser.add_argument("--limit", type=int, default=240, help="seconds for the first repro")
    arguments = parser.parse_args()
    found = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder) / "project", size, arguments.limit))
        print(size, json.dumps(found[-1]), file=sys.stderr, flush=True)
    heading = ["train and evaluate stages", *(f"{size:,}" for size in arguments.sizes)]
    rows = [[words, *(column[words] for column in found)] for words in found[0]]
    print(json.dumps({"note": "Seconds, n = 1 each", "heading": heading, "rows": rows}))


if __name__ == "__main__":
    main()
