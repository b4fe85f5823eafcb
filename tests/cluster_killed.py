"""Three Ray nodes on this machine, with folders of their own, killed at random moments; then the bits are compared.

While `make repro CLUSTER=…` runs, every few seconds one of these happens: a worker is killed, a training is killed, a
node is lost and another comes with an empty folder, the head is killed and started again, the remote goes away for a
while. Then the summary has to equal that of one machine in sequence, no run that was done may have begun again, and
nothing may be left to do. Prints JSON; ends with 1 where one of these does not hold. Needs `make cluster`.

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
    """Run the matrix while things are killed; what happened, and what came out."""
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
        event = "head" if code else chance.choice(EVENTS)
        happened[event] += 1
        print(f"{time.monotonic() - started:.0f} s: {event}", file=sys.stderr, flush=True)
        if event == "head":
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
        again += [run for run in re.findall(r"^(\S+) running on", text, re.MULTILINE) if run in done]
        done |= set(re.findall(r"^(\S+) done on", text, re.MULTILINE))
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
    """What the runs that were done took, each step by itself."""
    return {
        step: statistics.median(float(value) for value in re.findall(rf"{step} ([\d.]+)", text))
        for step in ("clone and pull", "train and evaluate", "push")
    }


def away(remote, seconds):
    """Put a file into the remote's place for a while."""
    if remote.is_dir():
        remote.rename(remote.with_name("away"))
        remote.touch()
        time.sleep(seconds)
        remote.unlink()
        remote.with_name("away").rename(remote)


def kill(chance, words):
    """Kill a process with these words in its command line or its folder: a worker, or a training on a node."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        line = " ".join(process.info["cmdline"] or ())
        if words in line or ("stages/train.py" in line and words in (process.info["cwd"] or "")):
            found.append(process)
    if found:
        chance.choice(found).kill()


if __name__ == "__main__":
    main()
