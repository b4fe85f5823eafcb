"""Bring everything up to date on this machine: `dvc repro`, with the runs side by side.

DVC has no --jobs, but several `dvc repro --single-item` may run at once. Plain `dvc repro` gives the same bits, one run
after another. DVC's output is shown, except for a few lines that are of no use here.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from regbench import errors, live, params, plan
from regbench.errors import UserError
from regbench.params import Params
from regbench.review import git
from regbench.runner import lock, machine, progress, store, worker

CHATTER = re.compile(
    r"""\s*
    | (Updating|Generating)\ lock\ file\ 'dvc\.lock'
    | To\ track\ the\ changes\ with\ git,\ run:
    | \s+git\ add\ .*
    | To\ enable\ auto\ staging,\ run:
    | \s+dvc\ config\ core\.autostage\ true
    | Use\ `dvc\ push`\ to\ send\ your\ updates\ to\ remote\ storage\.
    | Stage\ '.*'\ didn't\ change,\ skipping
    | Data\ and\ pipelines\ are\ up\ to\ date\.
    | >\ exec\ python\ stages/.*
    """,
    re.VERBOSE,
)
"""Lines of DVC's output that are not shown."""

PATIENCE = 20
"""Seconds for the stages to end after Ctrl-C, before they are killed."""

BYTES_OF_RUN = 50 * machine.MIB
"""Bytes that a run of the default network writes: a model, its copy in DVC's cache, and checkpoints while training."""


def repro(jobs: int | None = None) -> None:
    """Bring all results up to date.

    Args:
        jobs: how many runs to train at a time; None chooses by cores and memory.

    Raises:
        UserError: params.yaml is wrong, DVC can't work here, or runs failed.
    """
    settings = begin()
    # In a fresh clone `dvc status` takes seconds and its answer is known.
    if Path("prepared").exists() and not stale():
        print("Everything is up to date.")
        return
    cache, remote = store.facts()
    # Without a remote store and with an empty cache, there are no results to restore.
    fresh = not remote and not any(cache.glob("*/*"))
    check_writable(Path.cwd(), cache)
    runs, found = [run.key for run in settings.runs], {}
    if not fresh:
        dvc("repro", "plan")
        found, remote = restore(runs, remote)
    if "prepare" not in found:
        dvc("repro", "prepare")
        found = {} if fresh else restore(runs, remote)[0]
    missing = missing_of(runs, found)
    say_taken([run for run in runs if run not in missing], found, all_done=not missing)
    if missing:
        check_space(settings, len(missing), cache)
        run_all(settings, missing, jobs)
    dvc("repro")


def begin() -> Params:
    """Check everything that can be checked before DVC is called, and repair DVC's files. Returns the settings.

    Raises:
        UserError: params.yaml is wrong, DVC would delete the dataset or a file of the model or miss its changes, a
            package for `live` is not installed, or there is no Git repository.
    """
    check_git()
    settings = params.load()
    live.require(live.wanted())
    plan.refuse_outputs(settings.data.dataset)
    plan.check_files(settings.model)
    for line in lock.mend():
        print(line, flush=True)
    return settings


# Checks before an hour of training


def check_git() -> None:
    """Raise a `UserError` where Git is missing or this folder is not in a Git repository."""
    try:
        git.output("rev-parse", "--git-dir")
    except UserError as error:
        raise UserError(
            f"{error}. DVC needs a Git repository: get the project with `git clone`, or run `git init`"
        ) from None


def check_writable(project: Path, cache: Path) -> None:
    """Raise a `UserError` where results could not be written into the project's folder or DVC's cache."""
    for folder in (project, cache):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"0")
        except OSError as error:
            # Name the folder, not the temporary file.
            error = OSError(error.errno, error.strerror, str(folder))
            raise UserError(errors.in_words(error) or f"{folder} can't be written: {error}") from None
    # A shared cache may hold folders that other users created.
    for folder in (
        cache / "files/md5",
        *(cache / "files/md5").glob("??"),
        cache / "runs",
        *(cache / "runs").glob("??"),
    ):
        if folder.exists() and not os.access(folder, os.W_OK | os.X_OK):
            raise UserError(
                f"DVC's cache can't be written: {folder} belongs to {_owner(folder)}. If you share this cache, ask for "
                "`dvc config cache.shared group` and `chmod -R g+w`. `dvc cache dir --local .dvc/cache` sets up a "
                "cache of your own"
            )


def _owner(folder: Path) -> str:
    try:
        return folder.owner()
    except (KeyError, NotImplementedError):  # a user without a name
        return "somebody else"


def check_space(settings: Params, missing: int, cache: Path) -> None:
    """Raise a `UserError` where the disk clearly has no room for the results of `missing` runs."""
    needed = missing * BYTES_OF_RUN * settings.model.width**2
    for folder in (Path.cwd(), cache):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise UserError(
                f"the disk of {folder} has {free / 1e9:.1f} GB left, and {_runs(missing)} will need about "
                f"{needed / 1e9:.1f}. Free some; `dvc gc --workspace` removes from DVC's cache what is not in use"
            )


# What DVC knows


def stale() -> dict[str, list]:
    """The stages that are out of date, {name: why}.

    Raises:
        UserError: `dvc status` failed; its own message has been printed.
    """
    command = worker.dvc("status", "--json", wait=False)
    done = subprocess.run(command, stdout=subprocess.PIPE, env=worker.environment(1), encoding="utf-8")
    if done.returncode:
        raise UserError("DVC can't be used here, as it says above")
    return json.loads(done.stdout[done.stdout.index("{") :])


def restore(runs: list[str], remote: str | None) -> tuple[dict[str, str], str | None]:
    """Restore stages of runs and `prepare`. Returns what was found, and `remote`, or None if it can't be read."""
    stages = ["prepare", *stages_of(runs)]
    if remote:
        try:
            return store.restore(stages, pull=True), remote
        except store.StoreError:
            print(f'The remote store "{remote}" can\'t be read, as said above. Going on without it', flush=True)
    return store.restore(stages), None


def stages_of(runs: list[str]) -> list[str]:
    """The stages of runs, each after the stages it depends on."""
    return [f"{stage}@{run}" for run in runs for stage in ("train", "evaluate")]


def missing_of(runs: list[str], found: dict[str, str]) -> dict[str, str]:
    """{run: its next stage, train or evaluate} for the runs whose stages are not all in `found`."""
    return {run: "evaluate" if f"train@{run}" in found else "train" for run in runs if f"evaluate@{run}" not in found}


def say_taken(runs: list[str], found: dict[str, str], all_done: bool) -> None:
    """Print how many finished runs were taken from DVC's cache and how many from the remote store."""
    sources = {run: {found[stage] for stage in stages_of([run])} for run in runs}
    pulled = sum("pulled" in source for source in sources.values())
    cached = sum("cached" in source for source in sources.values() if "pulled" not in source)
    taken = [
        f"{_runs(count)} {_were(count)} {words}"
        for count, words in ((pulled, "pulled from the remote store"), (cached, "taken from DVC's cache"))
        if count
    ]
    if taken:
        print(f"{', '.join(taken)}{'; none was trained' if all_done else ''}", flush=True)


# Running DVC


class Commands:
    """The DVC commands that are running. Those still running at the end of the `with` block are ended."""

    def __init__(self, runs: int = 1) -> None:
        limit = machine.gpu_mib(runs)
        self.environment = worker.environment(runs, **({"REGBENCH_GPU_MIB": str(limit)} if limit else {}))
        self.lock = threading.Lock()
        self.running = set()
        self.ending = False

    def __enter__(self) -> "Commands":
        return self

    def run(self, command: Sequence[str], show: Callable[[str], None]) -> tuple[int, str]:
        """Run a command to its end and call `show` with each line. Returns its exit code and its whole output."""
        with self.lock:
            if self.ending:
                return signal.SIGINT, ""
            process = worker.start(command, self.environment)
            self.running.add(process)
        output = []
        with process:
            for line in worker.lines(process):
                output.append(line)
                if not self.ending:
                    show(line)
            code = process.wait()
        self.running.discard(process)
        return code, "".join(output)

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.ending = True
            left = list(self.running)
        for number in (signal.SIGINT, signal.SIGKILL):
            for process in left:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
            deadline = time.monotonic() + PATIENCE
            for process in left:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))


def dvc(*arguments: str) -> None:
    """Run one DVC command and show its output. Raises a `UserError` if it fails."""
    with Commands() as commands:
        code, output = commands.run(worker.dvc(*arguments, wait=False), show)
    if code:
        if worker.KILLED.search(output):
            raise UserError(
                "the stage above was killed, probably because memory ran out. Close other programs and try again"
            )
        raise UserError(f"`dvc {' '.join(arguments)}` failed, as said above")


def show(line: str) -> None:
    """Print a line from DVC or a stage."""
    if line.endswith("\r"):  # a progress bar
        if sys.stdout.isatty():
            print(line, end="", flush=True)
    elif (text := said(line)) is not None:
        print(text, flush=True)


def said(line: str) -> str | None:
    """A line from DVC or a stage without its line end; None for a progress bar and for lines in `CHATTER`."""
    text = line.rstrip("\r\n")
    return None if line.endswith("\r") or CHATTER.fullmatch(text) else text


def run_all(settings: Params, missing: dict[str, str], jobs: int | None) -> None:
    """Train and evaluate runs, several at a time; one that fails does not stop the others.

    Raises:
        UserError: runs failed.
    """
    at_a_time = min(jobs or machine.jobs(settings, len(missing)), len(missing))
    at_the_end = at_a_time if jobs else machine.jobs_at_the_end(settings, len(missing), at_a_time)
    several = at_the_end > 1
    counts = Counter(missing.values())
    todo = " and ".join(f"{_runs(counts[stage])} to {stage}" for stage in ("train", "evaluate") if counts[stage])
    together = f", {at_a_time} at a time" * several + f", the last {at_the_end} together" * (at_the_end > at_a_time)
    print(todo + together, flush=True)
    done, failed, killed = [], [], []
    runs = progress.Progress(missing, settings.train.epochs, at_a_time)
    room = threading.Semaphore(at_a_time)
    with ThreadPoolExecutor(at_the_end) as pool, Commands(at_the_end) as commands:
        # Once only the last `at_the_end` runs are left, let all of them run together.
        def make_room(left: int) -> None:
            if left == at_the_end > at_a_time:
                room.release(at_the_end - at_a_time)

        def run(key: str, screen: progress.Screen) -> tuple[int, str]:
            def show(line: str) -> None:
                if (text := said(line)) is not None:
                    screen.line(key, text)

            # Without --wait-for-lock, DVC gives up when another run or another DVC holds the lock for 3 seconds.
            command = worker.dvc("repro", "--single-item", f"train@{key}", f"evaluate@{key}")
            with room:
                if not commands.ending:
                    screen.begin(key)
                code, output = commands.run(command, show)
                if not commands.ending:
                    screen.end(key, failed=bool(code))
            return code, output

        try:
            with progress.shown(runs) as screen:
                pending = {pool.submit(run, key, screen): key for key in missing}
                make_room(len(pending))
                for number, future in enumerate(as_completed(pending), start=1):
                    make_room(len(pending) - number)
                    code, output = future.result()
                    (failed if code else done).append(pending[future])
                    if code and worker.KILLED.search(output):
                        killed.append(pending[future])
        except KeyboardInterrupt:
            print(
                f"\ninterrupted: {len(done)} of {_runs(len(missing))} done and kept. `make repro` continues the others "
                "after their last epoch",
                file=sys.stderr,
            )
            sys.exit(130)
    if killed:
        fewer = "train fewer at a time (`make repro JOBS=1`) or " if several else ""
        print(
            f"{', '.join(killed)} {_were(len(killed))} killed, probably because memory ran out: {fewer}lower "
            "train.batch_size",
            file=sys.stderr,
        )
    if failed:
        others = {0: "", 1: " The other one is kept."}.get(len(done), f" The other {len(done)} are kept.")
        raise UserError(
            f"{len(failed)} of {_runs(len(missing))} failed, as said above: {', '.join(failed)}.{others} `make repro` "
            "tries again"
        )


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
