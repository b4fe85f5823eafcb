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
sys.path.insert(0, str(ROOT / "tests"))

from ray import cluster_utils  # noqa: E402
from scratch import copy_project  # noqa: E402

NODES = ("one", "two")


def main():
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["train"] |= {"epochs": 1, "warmup_epochs": 0}
    params["seeds"] = [0, 1]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        repository = copy_project(folder / "project", params)
        repository.run("dvc", "remote", "add", "--default", "store", str(folder / "store"))
        repository.commit("a remote")
        options = {"object_store_memory": 80 << 20}
        head = {"num_cpus": 0, "include_dashboard": False} | options
        ray = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            for name in NODES:
                ray.add_node(num_cpus=1, env_vars={"REGBENCH_SCRATCH": str(folder / name)}, **options)
            first, _ = repro(repository, ray.address)
            _, again = repro(repository, ray.address)
        finally:
            ray.shutdown()
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
        ["clone and pull, the first run of a node", *seconds(first)],
        ["clone and pull, its other runs", *seconds(others)],
        ["push", *seconds(pushes)],
        ["`make repro CLUSTER=…` with everything done", *seconds([again])],
        ["a run's results, to the remote store and from it to the first machine", *volume(of_runs)],
        ["the model among them", *volume(models)],
        ["prepared images, to each machine once", *volume([sum(megabytes("prepare"))])],
    ]
    return {"note": "Six runs of one epoch", "heading": ["what", "median (lowest–highest)", "n"], "rows": rows}


def seconds(values):
    found = spread(values)
    return [words(found, "s"), found["n"]]


def volume(values):
    found = spread(values)
    return [words(found, "MB"), found["n"]]


def words(found, unit):
    """A median with its unit, and the lowest and highest if they differ."""
    median, low, high = (f"{found[key]:.1f}" for key in ("median", "low", "high"))
    return f"{median} {unit}" if low == high else f"{median} ({low}–{high}) {unit}"


if __name__ == "__main__":
    main()
