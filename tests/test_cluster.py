"""The matrix on Ray nodes that share nothing but DVC's remote, against the same matrix on one machine in sequence."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from conftest import TINIEST, Repository, copy_project, tiny_params

from regbench import node

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: make cluster")


class Nodes:
    """A Ray cluster on this machine: a head that runs nothing, and nodes with folders of their own."""

    def __init__(self, folder):
        self.folder = folder
        self.cluster = cluster_utils.Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False},
        )
        self.address = self.cluster.address
        self.running = {}

    def add(self, name):
        scratch = {"REGBENCH_SCRATCH": str(self.folder / name)}
        self.running[name] = self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars=scratch)

    def lose(self, name):
        self.cluster.remove_node(self.running.pop(name), allow_graceful=False)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    nodes = Nodes(tmp_path_factory.mktemp("nodes"))
    yield nodes
    nodes.cluster.shutdown()


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    """The project with its remote, committed, and three runs to train."""
    folder = tmp_path_factory.mktemp("cluster")
    chosen = tiny_params(image_folder, **TINIEST)
    chosen["reg"] = {"none": 0, "l2": 0.01, "l1": 0.001}
    repository = copy_project(folder / "project", chosen)
    repository.dvc("remote", "add", "--default", "store", str(folder / "remote"))
    repository.commit("a remote")
    return repository


def start(repository, address, log):
    """`make repro CLUSTER=address` without make: the process, its output in `log`."""
    environment = repository.environment() | {"PYTHONPATH": "src"}
    command = (sys.executable, "-m", "regbench.cluster", address)
    with open(log, "a") as file:
        return subprocess.Popen(command, cwd=repository.folder, env=environment, stdout=file, stderr=file)


def wait_for(log, pattern, process):
    """Wait until `log` has `pattern`, as long as the process goes on; the match."""
    while not (found := re.search(pattern, log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found


def test_lost_nodes_killed_tasks_and_a_restarted_head_give_the_bits_of_one_machine(repository, nodes, tmp_path):
    alone = tmp_path / "alone"
    repository.run("git", "clone", "-q", str(repository.folder), str(alone))
    log = tmp_path / "log"
    for name in ("one", "two"):
        nodes.add(name)
    head = start(repository, nodes.address, log)
    wait_for(log, "2 running", head)

    # A task: the worker process is killed, and its training goes with it.
    worker = next(process for process in psutil.process_iter(["cmdline"]) if "ray::_task" in _command_line(process))
    worker.kill()
    wait_for(log, "attempt 2", head)
    # A node, with what is on it.
    nodes.lose("one")
    shutil.rmtree(nodes.folder / "one", ignore_errors=True)
    wait_for(log, r"done on", head)
    # The head, in the midst of it; and as if dvc had just been writing.
    head.send_signal(signal.SIGKILL)
    head.wait()
    whole = repository.read("dvc.lock")
    (repository.folder / "dvc.lock").write_text(whole[: whole.rindex("md5:") + 2])
    nodes.add("three")
    done = re.findall(r"^(\S+) done on", log.read_text(), re.MULTILINE)
    second = tmp_path / "second"
    head = start(repository, nodes.address, second)
    assert head.wait() == 0, second.read_text()
    assert "dvc.lock was cut off" in second.read_text()
    again = re.findall(r"^(\S+) running on", second.read_text(), re.MULTILINE)
    assert not set(done) & set(again)
    assert "Data and pipelines are up to date" in repository.dvc("status")

    Repository(alone).dvc("repro", "--quiet")
    for path in ("metrics/summary.json", "plots/curves.csv"):
        assert repository.read(path) == Repository(alone).read(path)
    repository.commit("results")


def _command_line(process):
    return " ".join(process.info["cmdline"] or ())


def test_an_entry_of_the_run_cache_whose_files_are_lost_hides_no_other(repository, nodes, tmp_path):
    """With the results of the test before: of one run there is another entry, the newest, whose files are nowhere."""
    clone = Repository(tmp_path / "clone")
    repository.run("git", "clone", "-q", str(repository.folder), str(clone.folder))
    (clone.folder / "dvc.lock").unlink()
    remote = repository.folder.parent / "remote"
    whole = next(path for path in remote.glob("runs/*/*/*") if "stages/train.py none 0" in path.read_text())
    entry = yaml.safe_load(whole.read_text())
    for output in entry["outs"]:
        output["md5"] = "0" * 32
    broken = clone.folder / ".dvc/cache" / whole.parent.relative_to(remote) / ("0" * 64)
    broken.parent.mkdir(parents=True)
    broken.write_text(yaml.safe_dump(entry))
    in_an_hour = time.time() + 3600  # later than the others are fetched
    os.utime(broken, (in_an_hour, in_an_hour))
    log = tmp_path / "log"
    assert start(clone, nodes.address, log).wait() == 0, log.read_text()
    assert "have the results of 3" in log.read_text()


def test_a_failing_run_is_reported_and_the_others_go_on_while_the_remote_is_away(repository, nodes, tmp_path):
    if not nodes.running:
        nodes.add("four")
    script = repository.read("stages/train.py")
    broken = script.replace(
        "    settings = params.load()\n", "    settings = params.load()\n    assert sys.argv[1] != 'l2'\n"
    )
    (repository.folder / "stages/train.py").write_text(broken)
    remote = repository.folder.parent / "remote"
    log = tmp_path / "log"
    head = start(repository, nodes.address, log)
    wait_for(log, "none-0 running on", head)
    # Away: a file is in its place.
    remote.rename(remote.with_name("away"))
    remote.touch()
    time.sleep(random.uniform(0, 10))
    remote.unlink()
    remote.with_name("away").rename(remote)
    assert head.wait() == 1
    output = log.read_text()
    assert "Uncommitted changes are carried along: stages/train.py" in output
    assert "l2-0 failed; the end of .regbench/cluster/l2-0.log" in output and "AssertionError" in output
    assert "error: 1 of 3 runs are missing: l2-0" in output
    assert all(f"{run} done on" in output for run in ("none-0", "l1-0"))
    assert not re.search(r"l2-0 running on .*attempt 2", output)
    repository.run("git", "checkout", "-q", "stages/train.py")


def test_nothing_begins_without_a_remote_or_a_cluster(repository, nodes, tmp_path):
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    call = ("env", "PYTHONPATH=src", "python", "-m", "regbench.cluster")
    assert "error: no Ray cluster to be used at 127.0.0.1:1" in clone.run(*call, "127.0.0.1:1", check=False)
    clone.dvc("remote", "remove", "store")
    output = clone.run(*call, nodes.address, check=False)
    assert clone.returncode == 1 and "share nothing but DVC's remote, and this repository has no default one" in output
    assert "Traceback" not in output


def test_patience_ends():
    attempts = []

    def away():
        attempts.append(1)
        raise node.CutOffError("away")

    with pytest.raises(node.CutOffError):
        node.patiently(away, waits=(0, 0))
    assert len(attempts) == 3


# Ends as by `kill -9` when dvc has noted the first of the two files that it is about to push.
KILLED_PUSH = """
import os, signal, sys
from dvc.repo import Repo
import dvc_data.index.collect

module, noted = sys.modules["dvc_data.index.collect"], []
note = module._collect_from_index

def note_one(*args, **kwargs):
    if noted:
        os.kill(os.getpid(), signal.SIGKILL)
    noted.append(note(*args, **kwargs))

module._collect_from_index = note_one
Repo().push(targets=["two"])
"""


def test_a_push_after_one_that_was_killed_pushes_all(tmp_path):
    repository = Repository(tmp_path / "project")
    repository.folder.mkdir()
    repository.run("git", "init", "-q")
    repository.dvc("init", "-q")
    remote = tmp_path / "remote"
    repository.dvc("remote", "add", "--default", "store", str(remote))
    (repository.folder / "dvc.yaml").write_text("stages: {two: {cmd: 'echo 1 > a; echo 2 > b', outs: [a, b]}}")
    repository.dvc("repro", "-q")
    repository.run(sys.executable, "-c", KILLED_PUSH, check=False)
    assert repository.returncode == -signal.SIGKILL and not remote.exists()

    node.push(["two"], repository.folder)
    assert len([path for path in remote.rglob("*") if path.is_file()]) == 2


def test_a_guarded_command_ends_with_its_task(tmp_path):
    """What a killed worker leaves behind would train beside the next attempt."""
    code = (
        "import sys, pathlib; from regbench import node\n"
        "node._command(('bash', '-c', 'sleep 1000 & echo $! > pid; echo begun; wait'), pathlib.Path('.'), None, print)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src"), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen((sys.executable, "-c", code), cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as task:
        task.stdout.readline()
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        task.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
