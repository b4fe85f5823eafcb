"""What a node of a cluster does for one run: clone, prepared images, `dvc repro --single-item`, push.

It knows nothing of Ray and needs only the standard library and DVC's command line, because it is sent to the nodes as
it is. All nodes share DVC's remote store and nothing else. A node keeps its files under `scratch()`: one clone with its
cache for each state of the project.

`start` and `environment` are how the runner on one machine starts DVC, too.
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
"""DVC's words for a stage that was ended by SIGKILL; the second number is a shell's."""

SHOWN = re.compile(r"\S+ epoch \d+/\d+: |\S+ diverged: |Running stage '|TensorFlow")
"""What a node tells of what its runs print."""

# Runs a command, and kills its whole process group once nobody holds the other end of stdin: a runner that is killed
# takes its training with it. The empty handler leaves Ctrl-C to the command; to ignore the signal would be inherited.
GUARD = """
import os, signal, subprocess, sys, threading
signal.signal(signal.SIGINT, lambda *_: None)
command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (os.read(0, 1), os.killpg(0, signal.SIGKILL)), daemon=True).start()
code = command.wait()
os._exit(code if code >= 0 else 128 - code)
"""


class CutOffError(Exception):
    """A run was ended by something outside of it; another attempt is worth while, perhaps elsewhere."""


class KilledError(CutOffError):
    """The training was killed; waiting does not help."""


@dataclass(frozen=True)
class Project:
    """A state of the project, as it travels to the nodes.

    Attributes:
        tree: Git's hash of all files, which names the state.
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
        seconds: how long each step took.
        log: what a run printed that failed of itself, else None.
    """

    run: str
    node: str
    seconds: dict[str, float]
    log: str | None = None


def scratch() -> Path:
    """The folder for all that a node keeps. Several nodes on one machine each need their own `REGBENCH_SCRATCH`."""
    return Path(os.environ.get("REGBENCH_SCRATCH") or Path.home() / ".cache/regbench").resolve()


def carry_out(
    project: Project, run: str, node: str, runs: int, fetch: bool, progress: Callable[[str], None]
) -> Outcome:
    """Train and evaluate one run, unless the remote store has it, and push the results.

    Args:
        project: what to run.
        run: the run's key, like `l2-0`.
        node: what to call this node.
        runs: how many runs share the node's cores.
        fetch: whether to look for the run's results in the remote store first.
        progress: called with a few words whenever there is something to say.

    Returns:
        an `Outcome`, also of a run that failed of itself.

    Raises:
        CutOffError: training was killed, or the remote store did not answer for ten minutes.
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
    # An attempt that is being killed may still be there.
    with _locked(folder / f".regbench/{run}.lock") as lock:

        def repro() -> str | None:
            """Run both stages; None, or the log of a run that failed."""
            output = []

            def line(text: str) -> None:
                output.append(text)
                if SHOWN.match(text):
                    progress(text.strip())

            pull = ("--pull",) if fetch else ()
            # The machine that the user looks at writes logs and views itself, of these lines.
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
    """Push the outputs of stages, and the run cache with `run_cache`.

    While DVC pushes, it notes file by file in its site cache what it is about to push. A push that is killed leaves a
    list that is cut short. Every later push of the same files takes it for the whole list and says that all went well.
    So each push gets a site cache of its own.

    DVC pushes the run cache before the files. An entry there without its files would be found before a whole one, so
    the files are pushed first, by themselves.

    Raises:
        CutOffError: the push failed.
    """
    for options in [(), ("--run-cache",)] if run_cache else [()]:
        with tempfile.TemporaryDirectory() as own:
            _check(dvc("push", *options, *targets), folder, lock, DVC_SITE_CACHE_DIR=own)


def patiently(
    attempt: Callable[[], Result], progress: Callable[[str], None] = lambda words: None, waits: Sequence[float] = WAITS
) -> Result:
    """What `attempt` returns; where it raises `CutOffError`, it is called again after each of `waits`, in seconds."""
    for wait in waits:
        try:
            return attempt()
        except KilledError:
            raise
        except CutOffError as error:
            last = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            progress(f"the remote store does not answer; trying again in {wait} s ({last[:200]})")
            time.sleep(wait)
    return attempt()


def environment(runs: int, **others: str) -> dict[str, str]:
    """The environment variables of DVC and its stages.

    Args:
        runs: how many runs share the cores.
        others: further variables.
    """
    found = os.environ | {
        # The stages' `python` is the one that runs this.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), *filter(None, [os.environ.get("PATH")])]),
        "REGBENCH_RUNS": str(runs),
        # What they print is read line by line, as UTF-8.
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8:backslashreplace",
    }
    return found | others


def dvc(*arguments: str, wait: bool = True) -> tuple[str, ...]:
    """A command line of DVC's; with `wait` it waits for another DVC's lock, else it gives up after 3 seconds."""
    return (sys.executable, "-m", "dvc", *(("--wait-for-lock",) if wait else ()), *arguments)


def start(
    command: Sequence[str], environment: dict[str, str], folder: Path = Path(), lock: IO | None = None
) -> subprocess.Popen:
    """Start a command that ends when this process does; what it prints is in `stdout`, with line ends as they are.

    It leads a process group of its own, which Ctrl-C in the terminal does not reach.
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
    """What a process prints, up to each end of a line; a progress bar's ends are carriage returns."""
    yield from io.TextIOWrapper(process.stdout, encoding="utf-8", errors="replace", newline="")


def _workspace(project: Project) -> Path:
    """The node's clone of this state of the project, with the prepared images; the first run that comes makes it."""
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
            # Also what `plan` depends on, such as weights to start from.
            _check(dvc("pull", "--with-deps", "plan", "prepare"), folder)
            ready.parent.mkdir(exist_ok=True)
            ready.touch()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO]:
    """Hold a lock; it ends with the last process that has the file open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _check(command: Sequence[str], folder: Path, lock: IO | None = None, **variables: str) -> None:
    """Run a command; `CutOffError` with what it printed where it fails."""
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
    """Run a command to its end, `line` called with each line it prints; its exit code."""
    with start(command, environment(runs, **variables), folder, lock) as process:
        for text in lines(process):
            line(text)
        return process.wait()
