"""What a run costs on a Ray cluster beyond its training: six runs of one epoch of the default on two nodes.

Both nodes are on this machine, and the remote store is a folder. Needs Ray (`make cluster`). Prints JSON: the table of
docs/scale.md. `benchmarks/bench.py cluster` calls it and keeps the table.
"""

import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from measure import spread

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests/runner")]

import test_cluster  # noqa: E402
from scratch import copy_project  # noqa: E402

NODES = ("one", "two")


def main():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"epochs": 1, "warmup_epochs": 0}
    params["seeds"] = [0, 1]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        repository = test_cluster.with_remote(copy_project(folder / "project", params))
        nodes = test_cluster.Nodes(test_cluster.head(), folder / "nodes")
        try:
            for name in NODES:
                nodes.add(name)
            first, _ = repro(repository, nodes.address)
            _, again = repro(repository, nodes.address)
        finally:
            nodes.cluster.shutdown()
        stages = yaml.safe_load((repository.folder / "dvc.lock").read_text())["stages"]
    print(json.dumps(table(first, again, stages)))


def repro(repository, address):
    """Call `regbench repro` on the cluster; returns what it printed, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "regbench", "repro", "--cluster", address],
        cwd=repository.folder,
        env=repository.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout[-4000:])
    return done.stdout, time.monotonic() - started


def table(output, again, stages):
    """The table: seconds as the nodes report them, and sizes as dvc.lock records them."""
    first, others, pushes, seen = [], [], [], set()
    for node, clone, push in re.findall(
        r"^\S+ done on (\S+); seconds: clone and pull ([\d.]+), .*push ([\d.]+)", output, re.MULTILINE
    ):
        (others if node in seen else first).append(float(clone))
        seen.add(node)
        pushes.append(float(push))
    runs = {name.partition("@")[2] for name in stages if "@" in name}
    if (len(seen), len(pushes)) != (len(NODES), len(runs)):
        sys.exit(f"{len(pushes)} of {len(runs)} runs were trained, on {len(seen)} nodes:\n{output}")

    def megabytes(*names):
        return [out["size"] / 1e6 for name in names for out in stages[name]["outs"]]

    of_runs = [sum(megabytes(f"train@{run}", f"evaluate@{run}")) for run in runs]
    models = [max(megabytes(f"train@{run}")) for run in runs]
    rows = [
        ["clone and pull, the first run of a node", *cells(first, "s")],
        ["clone and pull, its other runs", *cells(others, "s")],
        ["push", *cells(pushes, "s")],
        ["`make repro CLUSTER=…` with everything done", *cells([again], "s")],
        ["a run's results, to the remote store and from it to the first machine", *cells(of_runs, "MB")],
        ["the model among them", *cells(models, "MB")],
        ["prepared images, to each machine once", *cells([sum(megabytes("prepare"))], "MB")],
    ]
    return {"note": "Six runs of one epoch", "heading": ["what", "median (lowest–highest)", "n"], "rows": rows}


def cells(values, unit):
    """The median with its unit, and the lowest and highest if they differ; and the number of values."""
    found = spread(values)
    median, low, high = (f"{found[key]:.1f}" for key in ("median", "low", "high"))
    return [f"{median} {unit}" if low == high else f"{median} ({low}–{high}) {unit}", found["n"]]


if __name__ == "__main__":
    main()
