"""Bring everything up to date on many machines: one Ray task for each missing run.

The machines share only DVC's remote store. Ray places the runs, restarts those whose node or worker was lost, and
ships this code. DVC's run cache records what is done.
"""

import contextlib
import dataclasses
import os
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from regbench import live
from regbench.errors import UserError
from regbench.params import Params
from regbench.review import git
from regbench.runner import local, progress, store, worker
from regbench.runner.lock import LOCK

if TYPE_CHECKING:
    from types import ModuleType

RETRIES = 10
"""How many times Ray restarts a run that was cut off, on any node that has room."""

LOGS = Path(".regbench/cluster")
TAIL = 20
"""Lines of a failed run's log to show."""

STATES = {"clone and pull": "clones", "train and evaluate": "starts", "push": "pushes"}
"""{step that a node reports: state that the table shows}."""


class Board:
    """Where runs have begun and what they report, kept by a Ray actor, if possible on the driver's node."""

    def __init__(self) -> None:
        self.attempts = Counter()
        self.states = {}
        self.lines = []

    def begin(self, run: str, node_id: str, name: str) -> int:
        """Record where a run begins, and return the number of this attempt, from 1."""
        self.attempts[run] += 1
        self.states[run] = {"node_id": node_id, "node": name, "attempt": self.attempts[run]}
        return self.attempts[run]

    def note(self, run: str, words: str) -> None:
        """Record a line that a run reports."""
        self.lines.append((run, words))

    def read(self) -> tuple[dict[str, dict], list[tuple[str, str]]]:
        """Return {run: where it is}, and the (run, line) pairs reported since the last call."""
        lines, self.lines = self.lines, []
        return self.states, lines


def repro(address: str) -> None:
    """Bring all results up to date on the Ray cluster at `address`, then report here.

    Raises:
        UserError: nothing could begin, the remote store did not answer, or runs are missing at the end.
    """
    settings = local.begin()
    if below := git.output("rev-parse", "--show-prefix").strip():
        raise UserError(
            f"a cluster needs the project at the top of its Git repository; this one is in {below}. Give it a "
            "repository of its own, or train on this machine: `make repro`"
        )
    if not local.stale():
        print("Everything is up to date.")
        return
    _, remote = store.facts()
    if not remote:
        raise UserError(
            "the machines of a cluster share only DVC's remote store, and this repository has no default remote; "
            "for example `dvc remote add --default store s3://bucket/regbench` (docs/scale.md)"
        )
    with connected(address) as ray:
        _repro(ray, remote, settings)


def _repro(ray: "ModuleType", remote: str, settings: Params) -> None:
    local.dvc("repro", "plan")
    if "prepare" not in local.restore([], remote)[0]:
        local.dvc("repro", "prepare")
    weights = settings.model.weights
    _push(["plan", "prepare", *([weights] if weights and Path(f"{weights}.dvc").is_file() else [])])
    runs = [run.key for run in settings.runs]
    missing = _restore(runs)
    cached = len(runs) - len(missing)
    _say(f'{len(runs)} runs; the cache and the remote store "{remote}" have the results of {cached}')
    failed = {}
    if missing:
        if trained := [f"train@{run}" for run, stage in missing.items() if stage == "evaluate"]:
            _push(trained, run_cache=True)
        failed = _submit(ray, _project(remote), settings, missing)
        missing = _restore(runs)
    _show_failed(failed)
    if missing:
        raise UserError(
            f"{len(missing)} of {len(runs)} runs are missing: {', '.join(missing)}. The others are here and in the "
            "remote store. Run the command again to train only the missing ones"
        )
    local.dvc("repro")


def _show_failed(failed: dict[str, str]) -> None:
    for run, why in failed.items():
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{run}.log"
        log.write_text(why)
        print("\n".join([f"\n{run} failed; the end of {log}:", *why.splitlines()[-TAIL:]]))


def _say(words: str) -> None:
    print(words, flush=True)


def _restore(runs: list[str]) -> dict[str, str]:
    """Restore results from the cache or the remote store. Returns {missing run: next stage, train or evaluate}."""

    def attempt() -> dict[str, str]:
        try:
            return store.restore(local.stages_of(runs), pull=True, pushed=True)
        except store.StoreError as error:
            raise worker.CutOffError(str(error)) from None

    return local.missing_of(runs, _patiently(attempt))


def _push(targets: list[str], run_cache: bool = False) -> None:
    _patiently(lambda: worker.push(targets, run_cache=run_cache))


def _patiently(attempt: Callable[[], worker.Result]) -> worker.Result:
    try:
        return worker.patiently(attempt, _say)
    except worker.CutOffError as error:
        raise UserError(f"the remote store did not answer for ten minutes: {error}") from None


def _project(remote: str) -> worker.Project:
    """This working tree as it is sent to the nodes: every file that Git does not ignore, committed or not."""
    changed = [line[3:] for line in git.output("status", "--porcelain").splitlines() if line[3:] != str(LOCK)]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        _say(f"Uncommitted changes are sent along: {', '.join(changed[:5])}{more}")
    with tempfile.TemporaryDirectory() as folder:
        # A separate index leaves the user's unchanged. With fixed names and dates, equal files give equal commits.
        environment = {"GIT_INDEX_FILE": f"{folder}/index"}
        if git.commit("HEAD"):  # includes tracked files that .gitignore matches
            git.output("read-tree", "HEAD", **environment)
        for who in ("GIT_AUTHOR", "GIT_COMMITTER"):
            environment |= {f"{who}_NAME": "regbench", f"{who}_EMAIL": "", f"{who}_DATE": "2000-01-01T00:00Z"}
        git.output("add", "--all", **environment)
        short = git.output("hash-object", "-w", "--stdin", input=_short_lock()).strip()
        git.output("update-index", "--add", "--cacheinfo", f"100644,{short},{LOCK}", **environment)
        tree = git.output("write-tree", **environment).strip()
        commit = git.output("commit-tree", tree, "-m", "snapshot", **environment).strip()
        git.output("update-ref", worker.SNAPSHOT, commit)
        git.output("bundle", "create", f"{folder}/bundle", worker.SNAPSHOT)
        git.output("update-ref", "-d", worker.SNAPSHOT)
        bundle = Path(f"{folder}/bundle").read_bytes()
    return worker.Project(tree, bundle, node_config(remote))


def _short_lock() -> bytes:
    """dvc.lock without the runs: a node's DVC writes it faster, and new results do not make its clone outdated."""
    whole = yaml.safe_load(LOCK.read_text())
    whole["stages"] = {name: whole["stages"][name] for name in ("plan", "prepare")}
    return yaml.safe_dump(whole, sort_keys=False).encode()


def node_config(remote: str) -> str:
    """`.dvc/config.local` for a node. A remote store in a folder has its absolute path: a relative one would fail."""
    from configobj import ConfigObj
    from dvc.repo import Repo

    path = Path(".dvc/config.local")
    config = ConfigObj(path.read_text().splitlines() if path.exists() else [])
    with Repo() as repo:
        place = repo.cloud.get_remote(remote)
        if place.fs.protocol == "local":
            config.setdefault(f'remote "{remote}"', {})["url"] = place.path
    return "\n".join([*config.write(), ""])


@contextlib.contextmanager
def connected(address: str) -> Iterator["ModuleType"]:
    """Connect Ray to its cluster at `address`, and disconnect at the end. A search connects once per round."""
    ray = _connect(address)
    try:
        yield ray
    finally:
        ray.shutdown()


def _connect(address: str) -> "ModuleType":
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed; `make repro CLUSTER=…` installs it, or `.venv/bin/pip install -e '.[cluster]'`"
        ) from None
    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal():
            # Ray itself would try for 90 seconds, and then end the process.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"there is no Ray cluster at {address}: {reason} (docs/scale.md says how to start one)"
        ) from None
    return ray


def _submit(ray: "ModuleType", project: worker.Project, settings: Params, missing: dict[str, str]) -> dict[str, str]:
    """Carry out `missing`, {run: train or evaluate}, and show progress. Returns {run: why it failed}."""
    size, failed = settings.cluster, {}
    for module in (worker, sys.modules[__name__]):
        ray.cloudpickle.register_pickle_by_value(module)
    gpus = size.gpus if size.gpus is not None else int(ray.cluster_resources().get("GPU", 0) > 0)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board = ray.remote(Board).options(num_cpus=0, max_restarts=-1, scheduling_strategy=here).remote()
    task = ray.remote(_task).options(
        num_cpus=size.cpus,
        num_gpus=gpus,
        max_retries=RETRIES,
        retry_exceptions=[worker.CutOffError],
        # Spread the runs over the nodes, so that all nodes clone and pull at the same time.
        scheduling_strategy="SPREAD",
    )
    alive = [node for node in ray.nodes() if node["Alive"]]
    _say(f"{len(missing)} runs, each with {size.cpus:g} CPUs and {gpus:g} GPUs, on {len(alive)} nodes")
    if not any(
        node["Resources"].get("CPU", 0) >= size.cpus and node["Resources"].get("GPU", 0) >= gpus for node in alive
    ):
        _say("No node has that many CPUs and GPUs; waiting for one. Set them under cluster: in params.yaml")
    shared = ray.put(project)
    waiting = {task.remote(shared, board, run, stage == "evaluate", size.cpus): run for run, stage in missing.items()}
    runs = progress.Progress(missing, settings.train.epochs, at_a_time=len(missing))
    try:
        with progress.shown(runs) as screen:
            seen = _Seen(runs, screen)
            while waiting:
                ready, _ = ray.wait(list(waiting), timeout=1)
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                seen.look(*_read(ray, board), set(waiting.values()), alive)
                for reference in ready:
                    run = waiting.pop(reference)
                    try:
                        outcome = ray.get(reference)
                    except (ray.exceptions.RayError, worker.CutOffError) as error:
                        failed[run] = f"cut off; no attempts left: {error}"
                        seen.end(run, None)
                        continue
                    if outcome.log is not None:
                        failed[run] = outcome.log
                    seen.end(run, outcome)
    except KeyboardInterrupt:
        done = len(missing) - len(waiting) - len(failed)
        print(
            f"\ninterrupted: {done} of {len(missing)} runs done and kept in the remote store; running ones "
            f"are stopped. `make repro CLUSTER=…` trains the others",
            file=sys.stderr,
        )
        sys.exit(130)
    return failed


class _Seen:
    """Shows what the runs on the nodes report, and writes it to logs on this machine."""

    def __init__(self, runs: progress.Progress, screen: progress.Screen) -> None:
        self.runs, self.screen = runs, screen
        self.attempts: dict[str, int] = {}
        self.logs: dict[str, live.Log] = {}

    def look(self, states: dict[str, dict], lines: list[tuple[str, str]], waiting: set[str], alive: set[str]) -> None:
        """Record where runs are and what they have reported. A run whose node is lost goes back to waiting."""
        for run, it in states.items():
            if run in waiting and it["node_id"] in alive and self.attempts.get(run) != it["attempt"]:
                self.attempts[run] = it["attempt"]
                self.screen.begin(run, it["node"], it["attempt"])
        self.runs.lose({run for run in waiting & states.keys() if states[run]["node_id"] not in alive})
        self.runs.at_a_time = max(1, sum(run.running for run in self.runs.runs.values()))
        for run, words in lines:
            if words in STATES:
                self.runs.note(run, STATES[words])
                continue
            self.screen.line(run, words)
            if epoch := live.parse(words):
                self._log(epoch)

    def _log(self, epoch: live.Epoch) -> None:
        before = [row for row in live.read(epoch.run) if row["epoch"] < epoch.epoch]
        if epoch.run not in self.logs or len(before) < len(live.read(epoch.run)):  # a new attempt starts over
            self._close(epoch.run)
            self.logs[epoch.run] = live.Log(epoch.run, before)
        row = dataclasses.asdict(epoch)
        self.logs[epoch.run].add({name: row[name] for name in live.COLUMNS if name in row})

    def end(self, run: str, outcome: worker.Outcome | None) -> None:
        """Record that a run has ended. An outcome with a log is an error of its own; None: it was cut off."""
        self._close(run)
        if outcome is None or outcome.log is not None:
            self.screen.end(run, failed=True)
            return
        seconds = ", ".join(f"{name} {value:g}" for name, value in outcome.seconds.items())
        self.screen.end(run, failed=False, words=f"{run} done on {outcome.node}; seconds: {seconds}")

    def _close(self, run: str) -> None:
        if log := self.logs.pop(run, None):
            log.close()


def _read(ray: "ModuleType", board: Any) -> tuple[dict[str, dict], list[tuple[str, str]]]:
    try:
        return ray.get(board.read.remote(), timeout=10)
    except ray.exceptions.RayError:
        return {}, []


def _task(project: worker.Project, board: Any, run: str, trained: bool, cpus: float) -> worker.Outcome:
    """Carry out one run, in a worker process of a node."""
    import ray

    node_id = ray.get_runtime_context().get_node_id()
    name = f"{socket.gethostname()}/{node_id[:6]}"
    # The driver has already looked for results. A lost earlier attempt may have pushed some since.
    try:
        attempt = ray.get(board.begin.remote(run, node_id, name), timeout=60)
        fetch = trained or attempt > 1
    except ray.exceptions.RayError:
        fetch = True  # the board is lost: the table lacks this run, but the run can be trained
    runs = max(1, int(os.cpu_count() / cpus))  # as if the node were full
    return worker.carry_out(project, run, name, runs, fetch, lambda words: board.note.remote(run, words))
