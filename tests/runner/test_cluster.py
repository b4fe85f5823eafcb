"""Runs on Ray nodes that share only DVC's remote store, compared with the same runs in sequence on one machine."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import scratch
import yaml
from scratch import Repository

from regbench.runner import cluster, worker

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="Ray is not installed: make cluster")
pytestmark = [pytest.mark.slow, pytest.mark.dvc]


class Nodes:
    """Nodes of a Ray cluster on this machine, with folders of their own."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.address = cluster, folder, cluster.address
        self.running = {}

    def add(self, name):
        own = {"REGBENCH_SCRATCH": str(self.folder / name)}
        self.running[name] = self.cluster.add_node(num_cpus=1, object_store_memory=80 << 20, env_vars=own)

    def lose(self, name):
        self.cluster.remove_node(self.running.pop(name), allow_graceful=False)


def head():
    """A Ray cluster on this machine: only a head node so far, which has no CPUs for runs."""
    options = {"num_cpus": 0, "object_store_memory": 80 << 20, "include_dashboard": False}
    return cluster_utils.Cluster(initialize_head=True, head_node_args=options)


@pytest.fixture(scope="module")
def ray_cluster():
    made = head()
    yield made
    made.shutdown()


@pytest.fixture
def nodes(ray_cluster, tmp_path):
    nodes = Nodes(ray_cluster, tmp_path / "nodes")
    yield nodes
    for name in list(nodes.running):
        nodes.lose(name)


def with_remote(repository):
    repository.dvc("remote", "add", "--default", "store", str(repository.folder.parent / "remote"))
    repository.commit("a remote")
    return repository


def start(repository, address, log):
    """Start `regbench repro --cluster address` with its output appended to `log`. Returns the process."""
    command = ("python", "-m", "regbench", "repro", "--cluster", address)
    with open(log, "a") as file:
        return subprocess.Popen(command, cwd=repository.folder, env=repository.preloaded(), stdout=file, stderr=file)


def wait_for(log, pattern, process):
    """Wait until `log` contains `pattern`, and return the match. Fails if the process ends before."""
    while not (found := re.search(pattern, log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    return found


@pytest.mark.faults
def test_lost_nodes_killed_tasks_and_a_restarted_runner_give_the_bits_of_one_machine(trained, nodes, tmp_path):
    params = yaml.safe_load((trained / "params.yaml").read_text())
    repository = with_remote(scratch.copy_project(tmp_path / "project", params))
    log = tmp_path / "log"
    for name in ("one", "two"):
        nodes.add(name)
    runner = start(repository, nodes.address, log)
    wait_for(log, "2 running", runner)

    # Kill the worker process of a task; its training ends too.
    task = next(process for process in psutil.process_iter(["cmdline"]) if "ray::_task" in _command_line(process))
    task.kill()
    wait_for(log, "attempt 2", runner)
    # Lose a node, with everything on it.
    nodes.lose("one")
    shutil.rmtree(nodes.folder / "one", ignore_errors=True)
    wait_for(log, r"done on", runner)
    # Kill the runner during the runs, and leave dvc.lock as if DVC had been writing it.
    runner.send_signal(signal.SIGKILL)
    runner.wait()
    whole = repository.read("dvc.lock")
    repository.write("dvc.lock", whole[: whole.rindex("deps:") + 5])
    nodes.add("three")
    done = re.findall(r"^(\S+) done on", log.read_text(), re.MULTILINE)
    second = tmp_path / "second"
    assert start(repository, nodes.address, second).wait() == 0, second.read_text()
    assert "dvc.lock is damaged; deleted it" in second.read_text()
    again = re.findall(r"^(\S+) running on", second.read_text(), re.MULTILINE)
    assert not set(done) & set(again)
    assert "Data and pipelines are up to date" in repository.dvc("status")
    # The lines that trainings print on the nodes arrive here, and so do the numbers for `regbench watch`.
    said = log.read_text() + second.read_text()
    # The lines of a run may be lost with its node or with the first runner.
    heard = set(re.findall(r"^(\S+) epoch 1/1: .* reg loss .* left", said, re.MULTILINE))
    assert heard and heard <= {"none-0", "l2-0"}
    for run in heard:
        assert len((repository.folder / f".regbench/log/{run}.csv").read_text().splitlines()) == 2

    for path in ("metrics/summary.json", "plots/curves.csv", "report.json"):
        assert repository.read(path) == (trained / path).read_text()


def _command_line(process):
    return " ".join(process.info["cmdline"] or ())


@pytest.mark.faults
def test_a_failing_run_is_reported_and_the_others_go_on_while_the_remote_store_is_away(stub, nodes, tmp_path):
    repository = with_remote(stub)
    nodes.add("one")
    slow_or_broken = "run = sys.argv[1]\nassert run != 'l2-0'\ntime.sleep(2)\n"
    repository.replace("stages/train.py", "run = sys.argv[1]\n", slow_or_broken)
    remote = tmp_path / "remote"
    log = tmp_path / "log"
    runner = start(repository, nodes.address, log)
    wait_for(log, "none-0(:| running on)", runner)
    # The remote store is away: a file is in its place.
    remote.rename(remote.with_name("away"))
    remote.touch()
    time.sleep(random.uniform(0, 5))
    remote.unlink()
    remote.with_name("away").rename(remote)
    assert runner.wait() == 1, log.read_text()
    output = log.read_text()
    assert "Uncommitted changes are sent along: stages/train.py" in output
    assert "l2-0 failed; the end of .regbench/cluster/l2-0.log" in output and "AssertionError" in output
    assert "error: 1 of 2 runs are missing: l2-0" in output
    assert "none-0 done on" in output
    assert not re.search(r"l2-0 running on .*attempt 2", output)


def test_what_the_remote_store_has_is_not_trained(stub, nodes, clone, tmp_path):
    repository = with_remote(stub)
    repository.regbench("repro")
    repository.commit("results")
    repository.regbench("push")
    other = clone(repository)
    (other.folder / "dvc.lock").unlink()
    log = tmp_path / "log"
    assert start(other, nodes.address, log).wait() == 0, log.read_text()
    assert '2 runs; the cache and the remote store "store" have the results of 2' in log.read_text()
    again = tmp_path / "again"
    assert start(other, nodes.address, again).wait() == 0
    assert "Everything is up to date." in again.read_text()


def test_nothing_begins_without_a_remote_store_or_a_cluster(stub):
    output = stub.regbench("repro", "--cluster", "127.0.0.1:1", check=False)
    assert stub.returncode == 1
    assert "share only DVC's remote store, and this repository has no default remote" in output
    with_remote(stub)
    output = stub.regbench("repro", "--cluster", "127.0.0.1:1", check=False)
    assert stub.returncode == 1 and "error: there is no Ray cluster at 127.0.0.1:1" in output
    assert "Traceback" not in output


def test_one_process_connects_once_a_round(nodes):
    """As a search does."""
    for _ in range(2):
        with cluster.connected(nodes.address) as ray:
            assert ray.is_initialized()


def test_a_remote_store_in_a_folder_travels_by_its_whole_path(stub, monkeypatch):
    stub.dvc("remote", "add", "--local", "--default", "store", "../remote")
    monkeypatch.chdir(stub.folder)
    stub.write(".dvc/config.local", cluster.node_config("store"))
    listed = stub.dvc("config", "--local", "--list").splitlines()
    assert {*listed} == {f"remote.store.url={stub.folder.parent / 'remote'}", "core.remote=store"}


def test_a_project_below_the_top_of_its_repository_is_refused(stub):
    shutil.move(stub.folder / ".git", stub.folder.parent / ".git")
    output = stub.regbench("repro", "--cluster", "127.0.0.1:1", check=False)
    assert stub.returncode == 1 and "a cluster needs the project at the top of its Git repository" in output


def test_patience_ends():
    attempts = []

    def away():
        attempts.append(1)
        raise worker.CutOffError("away")

    with pytest.raises(worker.CutOffError):
        worker.patiently(away, waits=(0, 0))
    assert len(attempts) == 3


# Kills itself with SIGKILL after DVC has recorded the first of the two files that it is about to push.
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


@pytest.mark.faults
def test_a_push_after_one_that_was_killed_pushes_all(tmp_path):
    repository = Repository(tmp_path / "project")
    repository.folder.mkdir()
    repository.run("git", "init", "-q")
    repository.dvc("init", "-q")
    remote = tmp_path / "remote"
    repository.dvc("remote", "add", "--default", "store", str(remote))
    repository.write("dvc.yaml", "stages: {two: {cmd: 'echo 1 > a; echo 2 > b', outs: [a, b]}}")
    repository.dvc("repro", "-q")
    repository.run(sys.executable, "-c", KILLED_PUSH, check=False)
    assert repository.returncode == -signal.SIGKILL and not remote.exists()

    worker.push(["two"], repository.folder)
    assert len([path for path in remote.rglob("*") if path.is_file()]) == 2


def test_a_command_ends_with_its_task(tmp_path):
    """A training that a killed worker left behind would run beside the next attempt."""
    code = (
        "import os; from regbench.runner import worker\n"
        "command = ('bash', '-c', 'sleep 1000 & echo $! > pid; echo begun; wait')\n"
        "for line in worker.lines(worker.start(command, worker.environment(1))): print(line, flush=True)"
    )
    environment = os.environ | {"PYTHONPATH": str(scratch.ROOT / "src")}
    with subprocess.Popen((sys.executable, "-c", code), cwd=tmp_path, env=environment, stdout=subprocess.PIPE) as task:
        task.stdout.readline()
        child = psutil.Process(int((tmp_path / "pid").read_text()))
        task.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_how_a_command_ends_is_passed_on():
    for command, code in ((("true",), 0), (("bash", "-c", "exit 3"), 3), (("bash", "-c", "kill -9 $$"), 137)):
        with worker.start(command, worker.environment(1)) as process:
            assert (list(worker.lines(process)), process.wait()) == ([], code)
    with worker.start(("printf", "1 %%\\r2 %%\\rdone\\n"), worker.environment(1)) as process:
        assert list(worker.lines(process)) == ["1 %\r", "2 %\r", "done\n"]
