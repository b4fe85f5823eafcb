"""Three Ray nodes on this machine, with folders of their own, killed at random moments; then the bits are compared.

While `make repro CLUSTER=…` runs, every few seconds one of these happens: a worker is killed, a training is killed, a
node is lost and another joins with an empty folder, `regbench repro` is killed and started again, the remote store goes
away for a while. Afterwards the summary must equal that of the same runs on one machine in sequence, no finished run
may have started again, and nothing may be left to do. Prints JSON. Exits with 1 if one of these does not hold. Needs
`make cluster`.

    PYTHONPATH=src:tests python tests/cluster_killed.py --seeds 1
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).with_name("runner")))

import scratch
import test_cluster

EVENTS = ("worker", "training", "node", "head", "remote")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")
    parser.add_argument("--seeds", type=int, default=3, help="of the matrix, each with none, l1 and l2")
    parser.add_argument("--pause", type=float, default=12, help="seconds between two events, at most")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = try_to_break(Path(folder), random.Random(arguments.seed), arguments.seeds, arguments.pause)
    print(json.dumps(result, indent=2))
    sys.exit(not (result["equal"] and result["up_to_date"] and not result["done_and_begun_again"]))


def try_to_break(folder, chance, seeds, pause):
    """Run the matrix while things are killed; returns how often each event happened, and what the checks found."""
    images = folder / "images"
    scratch.write_image_folder(images)
    chosen = scratch.tiny_params(images, **scratch.TINIEST, **{"train.epochs": 3, "seeds": list(range(seeds))})
    repository = scratch.copy_project(folder / "project", chosen)
    repository.dvc("remote", "add", "--default", "store", str(folder / "remote"))
    repository.commit("a remote")
    alone = folder / "alone"
    repository.run("git", "clone", "-q", str(repository.folder), str(alone))
    alone = scratch.Repository(alone)

    nodes = test_cluster.Nodes(test_cluster.head(), folder / "nodes")
    for index in range(3):
        nodes.add(f"node{index}")
    happened, logs = Counter(), [folder / "log0"]
    started = time.monotonic()
    head = test_cluster.start(repository, nodes.address, logs[0])
    while True:
        try:
            code = head.wait(chance.uniform(1, pause))
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            break
        event = "failed" if code else chance.choice(EVENTS)
        happened[event] += 1
        print(f"{time.monotonic() - started:.0f} s: {event}", file=sys.stderr, flush=True)
        if event in ("head", "failed"):
            head.kill()
            head.wait()
            logs.append(folder / f"log{len(logs)}")
            head = test_cluster.start(repository, nodes.address, logs[-1])
        elif event == "node":
            name = chance.choice(list(nodes.running))
            nodes.lose(name)
            nodes.add(f"node{3 + happened['node']}")
        elif event == "remote":
            away(folder / "remote", chance.uniform(1, pause))
        else:
            kill(chance, "ray::_task" if event == "worker" else str(folder / "nodes"))
    seconds = time.monotonic() - started
    nodes.cluster.shutdown()

    alone.dvc("repro", "--quiet")
    texts = [log.read_text() for log in logs]
    done, again = set(), []
    for text in texts:
        for run, state in re.findall(r"^(\S+) (running|done) on", text, re.MULTILINE):
            if state == "done":
                done.add(run)
            elif run in done:
                again.append(run)
    return {
        "runs": 3 * seeds,
        "events": dict(happened),
        "seconds": round(seconds),
        "attempts": sum(len(re.findall(r"^\S+ running on", text, re.MULTILINE)) for text in texts),
        "done_and_begun_again": again,
        "median_seconds": medians("\n".join(texts)),
        "equal": all(
            repository.read(path) == alone.read(path) for path in ("metrics/summary.json", "plots/curves.csv")
        ),
        "up_to_date": "Data and pipelines are up to date" in repository.dvc("status"),
    }


def medians(text):
    """{step: median seconds over the finished runs}."""
    return {
        step: statistics.median(float(value) for value in re.findall(rf"{step} ([\d.]+)", text))
        for step in ("clone and pull", "train and evaluate", "push")
    }


def away(remote, seconds):
    """Replace the remote store's folder with a file for some seconds."""
    if remote.is_dir():
        remote.rename(remote.with_name("away"))
        remote.touch()
        time.sleep(seconds)
        remote.unlink()
        remote.with_name("away").rename(remote)


def kill(chance, words):
    """Kill a random process with these words in its command line, or a training with them in its working directory."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        if words in line or ("stages/train.py" in line and words in (process.info["cwd"] or "")):
            found.append(process)
    if found:
        chance.choice(found).kill()


if __name__ == "__main__":
    main()
