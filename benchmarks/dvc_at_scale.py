"""How long DVC itself takes as the matrix grows: the project's own dvc.yaml, with stages that only write their files.

Prints JSON: seconds of each command by number of train and evaluate stages. Every command runs in a process of its
own, as it does for a user; `--sizes` chooses the numbers. The first repro stops after `--limit` seconds and says how
far it came; what is left is then recorded in one go, so that the other commands find a whole matrix.
"""

import argparse
import json
import os
import platform
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
    write("metrics/summary.json", json.dumps({name: {metric: 0.5 for metric in "abcdefghijklm"} for name in names}))
else:
    names = ("evaluation.json", "confusion.csv", "layers.csv", "predictions.csv", "pruning.csv", "weights.csv")
    evaluation = [f"evaluation/{name}" for name in names]
    for file in {"train": ("model.keras", "history.csv"), "evaluate": evaluation}[stage]:
        write(f"runs/{name}/{file}", f"{name} {file}")
"""


def project(folder, stages):
    """The project with `stages` train and evaluate stages, their scripts replaced: the repository, and its runs."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    names = [f"r{index}" for index in range(REGULARIZERS)]
    params["reg"] = {name: {"l2": 10.0**-index} for index, name in enumerate(names)}
    params["seeds"] = list(range(stages // 2 // REGULARIZERS))
    params["report"]["baseline"] = names[0]
    repository = copy_project(folder, params)
    (folder / "stub.py").write_text(STAGE)
    for stage in ("prepare", "train", "evaluate", "report"):
        arguments = f"[sys.executable, 'stub.py', '{stage}', *sys.argv[1:]]"
        (folder / f"stages/{stage}.py").write_text(f"import os, sys\nos.execv(sys.executable, {arguments})\n")
    (folder / "names.json").write_text(json.dumps(names))
    repository.commit("stages that do nothing")
    return repository, [f"{name}-{seed}" for name in names for seed in params["train"]["seeds"]]


def seconds(repository, *arguments, limit=None):
    """How long a dvc command takes; None where it ran past `limit`."""
    started = time.monotonic()
    # In a group of its own, so that a stage that is running ends with it.
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
    """Seconds of each command for a matrix of `stages`."""
    repository, runs = project(folder, stages)
    remote = folder.parent / "remote"
    seconds(repository, "remote", "add", "--default", "store", str(remote))
    result = {"repro, every stage run": seconds(repository, "repro", "--quiet", limit=limit)}
    if result["repro, every stage run"] is None:
        done = len(list(folder.glob("runs/*/model.keras"))) + len(list(folder.glob("runs/*/evaluation.json")))
        result["repro, every stage run"] = f"{done} of {stages} in {limit} s"
        fill(folder, runs)
        seconds(repository, "repro", "--quiet")
    repository.commit("results")
    result["dvc.lock, MB"] = round((folder / "dvc.lock").stat().st_size / 1e6, 2)
    result["status"] = seconds(repository, "status")
    result["repro, nothing to do"] = seconds(repository, "repro", "--quiet")
    result["metrics diff"] = seconds(repository, "metrics", "diff", "HEAD~1")
    result["exp show"] = seconds(repository, "exp", "show", "--no-pager")
    result["push --run-cache, all"] = seconds(repository, "push", "--quiet", "--run-cache")
    run = runs[len(runs) // 2]
    result["push --run-cache, one run"] = seconds(
        repository, "push", "--quiet", "--run-cache", f"train@{run}", f"evaluate@{run}"
    )
    result["fetch --run-cache prepare"] = seconds(repository, "fetch", "--quiet", "--run-cache", "prepare")
    # A knob of one regularizer's single run would be a seed; its strength is the next best: its runs are out of date.
    params = yaml.safe_load((folder / "params.yaml").read_text())
    params["reg"]["r2"] = {"l2": 0.5}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    result["repro -s, train and evaluate of one run"] = seconds(
        repository, "repro", "--quiet", "--single-item", "train@r2-0", "evaluate@r2-0"
    )
    # As a node of a cluster has it: dvc.lock knows prepare and the node's own runs.
    lock = yaml.safe_load((folder / "dvc.lock").read_text())
    lock["stages"] = {"prepare": lock["stages"]["prepare"]}
    (folder / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / ".dvc/cache/runs")
    targets = ("train@r3-0", "evaluate@r3-0")
    result["repro -s, on a node"] = seconds(repository, "repro", "--quiet", "--single-item", *targets)
    result["push --run-cache, on a node"] = seconds(repository, "push", "--quiet", "--run-cache", *targets)
    return result


def fill(folder, runs):
    """Write what the stages would and record it in dvc.lock at once."""
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
    result = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "n": 1, "seconds": {}}
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            result["seconds"][size] = measure(Path(folder) / "project", size, arguments.limit)
        print(size, json.dumps(result["seconds"][size]), file=sys.stderr, flush=True)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
