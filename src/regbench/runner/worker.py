"""What a node of a cluster does for one run: clone, pull the prepared images, `dvc repro --single-item`, push.

This module does not use Ray. It needs only the standard library and DVC's command line, because its code is sent to the
nodes as it is. The nodes share only DVC's remote store. A node keeps its files under `scratch()`: one clone with its
cache for each state of the project.

The runner on one machine also starts DVC with `start` and `environment`.
"""

import contextlib
import fcntl
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

Result = TypeVar("Result")

WAITS = (1, 2, 4, 8, 15, 30, 60, 120, 180, 180)
"""Seconds between attempts to reach the remote store: ten minutes in all."""

KILLED = re.compile(r"failed to run: .*, exited with (?:-9|137)\b")
"""DVC's message for a stage that was ended by SIGKILL: -9 if DVC started it directly, 137 through a shell."""

SHOWN = re.compile(r"\S+ epoch \d+/\d+: |\S+ diverged: |Running stage '|TensorFlow")
"""The lines of a run's output that a node reports."""

# Runs a command, and kills its whole process group once the other end of stdin is closed: if the runner is killed, its
# training ends too. The empty handler leaves Ctrl-C to the command; SIG_IGN would be inherited by the command.
GUARD = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, lambda *_: None)
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGKILL)), daemon=True).start()
code = command.wait()
os._exit(code if code >= 0 else 128 - code)
"""


class CutOffError(Exception):
    """A run was ended from outside; another attempt may succeed, perhaps on another node."""


class KilledError(CutOffError):
    """The training was killed; waiting does not help."""


@dataclass(frozen=True)
class Project:
    """A state of the project, as it is sent to the nodes.

    Attributes:
        tree: Git's tree hash of all files, which identifies the state.
        bundle: a Git bundle of one commit, `SNAPSHOT`, that holds the files.
        config: `.dvc/config.local`, which Git does not keep: it may hold the remote store's credentials.
    """

    tree: str
    bundle: bytes
    config: str


SNAPSHOT = "refs/regbench/snapshot"


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Attributes:
        run: the run's key, like `l2-0`.
        node: what the node is called.
        seconds: {step: how long it took}.
        log: the output of a run that failed with an error of its own, else None.
    """

    run: str
    node: str
    seconds: dict[str, float]
    log: str | None = None


def scratch() -> Path:
    """The folder for a node's files. Several nodes on one machine each need their own `REGBENCH_SCRATCH`."""
    return Path(os.environ.get("REGBENCH_SCRATCH") or Path.home() / ".cache/regbench").resolve()


def carry_out(
    project: Project, run: str, node: str, runs: int, fetch: bool, progress: Callable[[str], None]
) -> Outcome:
    """Train and evaluate one run and push the results; with `fetch`, take what the remote store already has.

    Args:
        project: what to run.
        run: the run's key, like `l2-0`.
        node: what to call this node.
        runs: how many runs share the node's cores.
        fetch: whether to look for the run's results in the remote store first.
        progress: called with a short text for each step and each line that matches `SHOWN`.

    Returns:
        an `Outcome`, also for a run that failed with an error of its own.

    Raises:
        CutOffError: training was killed, or a step could not be done for ten minutes, such as a push.
    """
    seconds = {}

    @contextlib.contextmanager
    def timed(name: str) -> Iterator[None]:
        progress(name)
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    with timed("clone and pull"):
        folder = patiently(lambda: _workspace(project), progress)
    stages = (f"train@{run}", f"evaluate@{run}")
    # An earlier attempt may still be running while it is being killed.
    with _locked(folder / f".regbench/{run}.lock") as lock:

        def repro() -> str | None:
            """Run both stages. Returns None, or the log of a run that failed."""
            output = []

            def line(text: str) -> None:
                output.append(text)
                if SHOWN.match(text):
                    progress(text.strip())

            pull = ("--pull",) if fetch else ()
            # The user's machine writes logs and views itself, from these lines.
            code = _run(dvc("repro", "--single-item", *pull, *stages), folder, line, runs, lock, REGBENCH_LIVE="off")
            log = "".join(output)
            if code == 0:
                return None
            if KILLED.search(log):
                raise KilledError("the run was killed, probably because memory ran out")
            if "failed to run: " not in log:
                raise CutOffError(f"dvc repro did not get as far as the run:\n{log}")
            return log

        with timed("train and evaluate"):
            log = patiently(repro, progress)
        if log is None:
            with timed("push"):
                patiently(lambda: push(stages, folder, run_cache=True, lock=lock), progress)
    return Outcome(run, node, seconds, log)


def push(targets: Sequence[str], folder: Path = Path(), *, run_cache: bool = False, lock: IO | None = None) -> None:
    """Push the outputs of stages; with `run_cache`, also the run cache.

    While DVC pushes, it lists each file in its site cache that it is about to push. A push that is killed leaves an
    incomplete list. Every later push of the same files takes it for the complete list and reports success. So each push
    gets a site cache of its own.

    DVC pushes the run cache before the files. A run cache entry without its files could be found instead of a complete
    one. So the files are pushed first, in a command of their own.

    Raises:
        CutOffError: the push failed.
    """
    for options in [(), ("--run-cache",)] if run_cache else [()]:
        with tempfile.TemporaryDirectory() as own:
            _check(dvc("push", *options, *targets), folder, lock, DVC_SITE_CACHE_DIR=own)


def patiently(
    attempt: Callable[[], Result], progress: Callable[[str], None] = lambda words: None, waits: Sequence[float] = WAITS
) -> Result:
    """Return the result of `attempt`. After a `CutOffError`, call it again after each of `waits`, in seconds.

    A `KilledError` is raised at once.
    """
    for wait in waits:
        try:
            return attempt()
        except KilledError:
            raise
        except CutOffError as error:
            last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            progress(f"failed; trying again in {wait} s ({last[:200]})")
            time.sleep(wait)
    return attempt()


def environment(runs: int, **others: str) -> dict[str, str]:
    """The environment variables of DVC and its stages.

    Args:
        runs: how many runs share the cores.
        others: further variables.
    """
    found = os.environ | {
        # Stages run with the same Python as this process.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [os.environ.get("PATH")])]),
        "REGBENCH_RUNS": str(runs),
        # Their output is read line by line, as UTF-8.
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    return found | others


def dvc(*arguments: str, wait: bool = True) -> tuple[str, ...]:
    """A DVC command line. With `wait`, it waits for another DVC's lock; without, it gives up after 3 seconds."""
    return (sys.executable, "-m", "dvc", *(("--wait-for-lock",) if wait else ()), *arguments)


def start(
    command: Sequence[str], environment: dict[str, str], folder: Path = Path(), lock: IO | None = None
) -> subprocess.Popen:
    """Start a command that is killed when this process ends. Its output is in `stdout`, with line ends unchanged.

    It has its own process group, so Ctrl-C in the terminal does not reach it.
    """
    return subprocess.Popen(
        (sys.executable, "-c", GUARD, *command),
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=[lock.fileno()] if lock else [],
    )


def lines(process: subprocess.Popen) -> Iterator[str]:
    """The lines that a process prints, with their line ends; a progress bar's lines end with carriage returns."""
    yield from io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline="")


def _workspace(project: Project) -> Path:
    """The node's clone of this state of the project, with the prepared images. The first run on the node makes it."""
    folder = scratch() / project.tree[:16]
    ready = folder / ".regbench/ready"
    with _locked(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            bundle = folder.with_suffix(".bundle")
            bundle.write_bytes(project.bundle)
            _check(("git", "init", "--quiet"), folder)
            _check(("git", "fetch", "--quiet", str(bundle), SNAPSHOT), folder)
            _check(("git", "checkout", "--quiet", "--detach", "FETCH_HEAD"), folder)
            bundle.unlink()
            config = folder / ".dvc/config.local"
            config.touch(mode=0o600)
            config.write_text(project.config)
            # This also pulls what `plan` depends on, such as weights to start from.
            _check(dvc("pull", "--with-deps", "plan", "prepare"), folder)
            ready.parent.mkdir(exist_ok=True)
            ready.touch()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO]:
    """Hold a file lock. It is released when the last process that has the file open closes it or ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _check(command: Sequence[str], folder: Path, lock: IO | None = None, **variables: str) -> None:
    """Run a command. Raises a `CutOffError` with its output if it fails."""
    output = []
    if _run(command, folder, output.append, 1, lock, **variables):
        raise CutOffError(f"{' '.join(command)} failed:\n{''.join(output)}")


def _run(
    command: Sequence[str],
    folder: Path,
    line: Callable[[str], None],
    runs: int,
    lock: IO | None = None,
    **variables: str,
) -> int:
    """Run a command to its end and call `line` with each line it prints. Returns its exit code."""
    with start(command, environment(runs, **variables), folder, lock) as process:
        for text in lines(process):
            line(text)
        return process.wait()
