"""The matrix over many machines: one Ray task for each run that is missing, and DVC's remote between them.

Ray places runs, starts those again whose node or worker was lost, and ships this code; DVC's run cache knows what
is done. `make repro CLUSTER=ADDRESS` calls this instead of stages/side_by_side.sh.
"""

import argparse
import contextlib
import logging
import os
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from regbench import errors, lock, node, params
from regbench.errors import UserError

RETRIES = 10
"""How often Ray starts a run again that was cut off, on whichever node has room."""

LOGS = Path(".regbench/cluster")
TAIL = 20
"""Lines of a failed run's log to show."""


class Board:
    """What is known of the runs that have begun, kept by a Ray actor beside the driver."""

    def __init__(self):
        self.attempts = Counter()
        self.states = {}

    def begin(self, run, node_id, name):
        """Note where a run begins, and return which attempt that is, from 1."""
        self.attempts[run] += 1
        self.states[run] = {"node_id": node_id, "node": name, "words": "starts", "attempt": self.attempts[run]}
        return self.attempts[run]

    def note(self, run, words):
        """Note how far a run is."""
        if run in self.states:
            self.states[run]["words"] = words

    def read(self):
        """{run: its state}."""
        return self.states


@dataclass
class Progress:
    """The whole matrix as the user sees it."""

    total: int
    cached: int
    running: dict = field(default_factory=dict)
    done: dict = field(default_factory=dict)
    failed: dict = field(default_factory=dict)

    def counts(self):
        """Waiting, running, done and failed, in words."""
        waiting = self.total - self.cached - len(self.running) - len(self.done) - len(self.failed)
        return f"{waiting} waiting, {len(self.running)} running, {len(self.done)} done, {len(self.failed)} failed"


def run_matrix(address):
    """Bring the matrix up to date on the Ray cluster at `address`, then report here.

    Raises:
        UserError: nothing could begin, or runs failed of themselves.
    """
    settings = params.load()
    lock.mend()
    remote = _remote()
    ray = _connect(address)
    _dvc("repro", "--quiet", "prepare")
    _push(["prepare"])
    runs = settings.runs
    state = node.patiently(lambda: _restore(runs), _say)
    missing = [run for run in runs if state[run] != "done"]
    progress = Progress(len(runs), len(runs) - len(missing))
    _say(f"{len(runs)} runs; the cache and the remote {remote} have the results of {progress.cached}")
    if missing:
        if trained := [f"train@{run}" for run in missing if state[run] == "trained"]:
            _push(trained, run_cache=True)
        _submit(ray, _project(remote), settings.cluster, {run: state[run] == "trained" for run in missing}, progress)
        state = node.patiently(lambda: _restore(runs), _say)
    _finish(progress, [run for run in runs if state[run] != "done"])


def _finish(progress, missing):
    """Report, or say which runs are missing."""
    for run, why in progress.failed.items():
        LOGS.mkdir(parents=True, exist_ok=True)
        log = LOGS / f"{run}.log"
        log.write_text(why)
        print("\n".join([f"\n{run} failed; the end of {log}:", *why.splitlines()[-TAIL:]]))
    if missing:
        raise UserError(
            f"{len(missing)} of {progress.total} runs are missing: {', '.join(missing)}; the others are in the "
            "remote and here. Called again, only the missing ones are tried"
        )
    _dvc("repro", "--quiet")


def _say(words):
    print(words, flush=True)


def _git(*arguments, **options):
    done = subprocess.run(("git", *arguments), capture_output=True, **options)
    if done.returncode:
        raise UserError(f"git {arguments[0]} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _dvc(*arguments):
    if subprocess.run((sys.executable, "-m", "dvc", *arguments)).returncode:
        raise UserError(f"dvc {' '.join(arguments)} failed, as said above")


def _push(targets, run_cache=False):
    node.patiently(lambda: node.push(targets, run_cache=run_cache), _say)


def _remote():
    """The name of DVC's default remote, which has to be there: it is all that the machines share."""
    from dvc.repo import Repo

    with Repo() as repo:
        name = repo.config["core"].get("remote")
        if not name:
            raise UserError(
                "the machines of a cluster share nothing but DVC's remote, and this repository has no default one; "
                "for example `dvc remote add --default store s3://bucket/regbench` (docs/scale.md)"
            )
    return name


def _project(remote):
    """This working tree as a `node.Project`: every file that Git does not ignore, committed or not."""
    changed = [line[3:] for line in _git("status", "--porcelain").decode().splitlines() if line[3:] != "dvc.lock"]
    if changed:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        print(f"Uncommitted changes are carried along: {', '.join(changed[:5])}{more}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        # An index of its own leaves the user's alone; fixed dates and names let equal files make an equal commit.
        environment = os.environ | {"GIT_INDEX_FILE": f"{folder}/index"}
        for who in ("GIT_AUTHOR", "GIT_COMMITTER"):
            environment |= {f"{who}_NAME": "regbench", f"{who}_EMAIL": "", f"{who}_DATE": "2000-01-01T00:00Z"}
        _git("add", "--all", env=environment)
        short = _git("hash-object", "-w", "--stdin", input=_lock_of_prepare()).decode().strip()
        _git("update-index", "--add", "--cacheinfo", f"100644,{short},dvc.lock", env=environment)
        tree = _git("write-tree", env=environment).decode().strip()
        commit = _git("commit-tree", tree, "-m", "snapshot", env=environment).decode().strip()
        _git("update-ref", node.SNAPSHOT, commit)
        _git("bundle", "create", f"{folder}/bundle", node.SNAPSHOT)
        _git("update-ref", "-d", node.SNAPSHOT)
        bundle = Path(f"{folder}/bundle").read_bytes()
    local = Path(".dvc/config.local")
    return node.Project(tree, bundle, (local.read_text() if local.exists() else "") + _absolute(remote))


def _lock_of_prepare():
    """dvc.lock without the runs: a node's dvc takes seconds to write a long one, and its clone stays good longer."""
    whole = yaml.safe_load(lock.LOCK.read_text())
    whole["stages"] = {"prepare": whole["stages"]["prepare"]}
    return yaml.safe_dump(whole, sort_keys=False).encode()


def _absolute(remote):
    """A section of DVC's config that says where a remote in a folder is; a relative path means nothing elsewhere."""
    from dvc.repo import Repo

    with Repo() as repo:
        place = repo.cloud.get_remote(remote)
        return f"\n['remote \"{remote}\"']\n    url = {place.path}\n" if place.fs.protocol == "local" else ""


def _restore(runs):
    """Bring results that the cache or the remote has into workspace and dvc.lock; {run: done, trained or missing}."""
    from dvc.repo import Repo
    from dvc.stage import PipelineStage
    from dvc.stage.cache import RunCacheNotFoundError, _get_stage_hash

    # It says of each stage that it is cached.
    logging.getLogger("dvc").setLevel(logging.WARNING)
    restored = []

    def newest_restored(stage):
        try:
            repo.stage_cache.restore(stage, pull=True)
        except RunCacheNotFoundError:
            return False
        return True

    def cached(stage):
        """Restore any entry of the run cache whose files are there; dvc tries the newest only, which may have none."""
        if newest_restored(stage):
            return True
        key = _get_stage_hash(stage)
        entries = Path(repo.stage_cache._get_cache_dir(key)).glob("*") if key else ()
        tried, *others = sorted(entries, key=os.path.getmtime, reverse=True) or [None]
        for later, entry in enumerate(others, 1):
            os.utime(entry, (tried.stat().st_mtime + later,) * 2)
            if newest_restored(stage):
                return True
        return False

    def restore(stage):
        if not (stage.changed_stage() or stage.changed_deps()):
            for objects in stage.get_used_objs().values():
                repo.cloud.pull(objects)
            if stage.outs_cached():
                stage.checkout()
                return True
        if not cached(stage):
            return False
        stage.save(run_cache=False)
        restored.append(stage)
        return True

    def state(run):
        if not restore(stages[f"train@{run}"]):
            return "missing"
        return "done" if restore(stages[f"evaluate@{run}"]) else "trained"

    try:
        with Repo() as repo, repo.lock:
            repo.stage_cache.pull(None)
            stages = {stage.name: stage for stage in repo.index.stages if isinstance(stage, PipelineStage)}
            states = {run: state(run) for run in runs}
            # Had the remote gone away in between, results that are there would have been called missing.
            place = repo.cloud.get_remote_odb()
            place.fs.ls(place.path)
            # All at once: `dvc repro` writes dvc.lock anew for each stage, which takes hours for a thousand.
            if restored:
                restored[0].dvcfile.dump_stages(restored, update_pipeline=False)
            return states
    except Exception as error:  # each kind of remote has its own ways to fail
        raise node.CutOffError(f"the remote can't be read: {error!r}") from error


def _connect(address):
    try:
        import ray
    except ImportError:
        raise UserError(
            "Ray is not installed; `make repro CLUSTER=…` installs it, or `pip install -e '.[cluster]'`"
        ) from None
    try:
        host, _, port = address.rpartition(":")
        if port.isdecimal():
            # Ray itself tries for a minute and a half, and then ends the process.
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"no Ray cluster to be used at {address}: {reason} (docs/scale.md says how to start one)"
        ) from None
    return ray


def _submit(ray, project, size, missing, progress):
    """Run what is `missing`, {run: whether only its evaluation is}, and show it until all have ended."""
    for module in (node, sys.modules[__name__]):
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
        retry_exceptions=[node.CutOffError],
        # Over the nodes, so that a first run on each clones and pulls while others do the same.
        scheduling_strategy="SPREAD",
    )
    _say(f"{len(missing)} runs, each with {size.cpus:g} CPUs and {gpus:g} GPUs, on {_nodes(ray)} nodes")
    largest = [ray_node["Resources"] for ray_node in ray.nodes() if ray_node["Alive"]]
    if not any(it.get("CPU", 0) >= size.cpus and it.get("GPU", 0) >= gpus for it in largest):
        _say("No node of the cluster has as many; waiting for one that has. cluster: in params.yaml says how many")
    shared = ray.put(project)
    waiting = {task.remote(shared, board, run, trained, size.cpus): run for run, trained in missing.items()}
    with _shown(progress) as show:
        while waiting:
            ready, _ = ray.wait(list(waiting), timeout=1)
            for reference in ready:
                run = waiting.pop(reference)
                try:
                    outcome = ray.get(reference)
                except (ray.exceptions.RayError, node.CutOffError) as error:
                    progress.failed[run] = f"cut off, and not tried again: {error}"
                    continue
                if outcome.log is None:
                    progress.done[run] = outcome
                else:
                    progress.failed[run] = outcome.log
            alive = {it["NodeID"] for it in ray.nodes() if it["Alive"]}
            states = _read(ray, board)
            progress.running = {
                run: states[run] for run in waiting.values() if run in states and states[run]["node_id"] in alive
            }
            show()


def _nodes(ray):
    return sum(it["Alive"] for it in ray.nodes())


def _read(ray, board):
    try:
        return ray.get(board.read.remote(), timeout=10)
    except ray.exceptions.RayError:
        return {}


def _task(project, board, run, trained, cpus):
    """One run, in a worker process of a node."""
    import ray

    os.environ["REGBENCH_RUNS"] = str(max(1, int(os.cpu_count() / cpus)))  # as if the node were full
    node_id = ray.get_runtime_context().get_node_id()
    name = f"{socket.gethostname()}/{node_id[:6]}"
    # The head has looked before it began; after a loss the results may be there all the same.
    try:
        fetch = trained or ray.get(board.begin.remote(run, node_id, name), timeout=60) > 1
    except ray.exceptions.RayError:
        fetch = True  # the board is lost, and the table lacks this run; no reason not to train
    return node.carry_out(project, run, name, fetch, lambda words: board.note.remote(run, words))


@contextlib.contextmanager
def _shown(progress):
    """A function that shows how far all runs are: a live table on a terminal, else a line for each change."""
    if sys.stdout.isatty():
        from rich.live import Live

        with Live(_table(progress), refresh_per_second=2) as live:
            yield lambda: live.update(_table(progress))
    else:
        told = set()
        yield lambda: _tell(progress, told)


def _table(progress):
    from rich.table import Table

    table = Table("run", "state", "node", caption=progress.counts())
    for run, state in progress.running.items():
        again = f" (attempt {state['attempt']})" if state["attempt"] > 1 else ""
        table.add_row(run, f"running: {state['words']}{again}", state["node"])
    for run in progress.failed:
        table.add_row(run, "[red]failed[/red]", "")
    return table


def _tell(progress, told):
    news = [(run, f"running on {it['node']}, attempt {it['attempt']}") for run, it in progress.running.items()]
    news += [(run, f"done on {it.node}; seconds: {_seconds(it)}") for run, it in progress.done.items()]
    news += [(run, "failed") for run in progress.failed]
    news = [line for line in news if line not in told]
    told.update(news)
    for run, words in news:
        _say(f"{run} {words} ({progress.counts()})")


def _seconds(outcome):
    return ", ".join(f"{name} {value:g}" for name, value in outcome.seconds.items())


def main():
    parser = argparse.ArgumentParser(prog="python -m regbench.cluster", description=__doc__)
    parser.add_argument("address", help="of the Ray cluster, or auto for the one that this machine belongs to")
    run_matrix(parser.parse_args().address)


if __name__ == "__main__":
    errors.run(main)
