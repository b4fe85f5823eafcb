"""What a node of a cluster does for one run of the matrix: clone, prepared data, `dvc repro -s`, push.

Knows nothing of Ray, and needs only the standard library and DVC's command line: it is sent to nodes as it is.
All nodes share DVC's remote and nothing else. What a node keeps is under `scratch()`, one clone with its cache for
each state of the project.
"""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

WAITS = (1, 2, 4, 8, 15, 30, 60, 120, 180, 180)
"""Seconds between attempts to reach the remote: ten minutes in all."""

# Runs a command in a process group that ends with the reader of its output: who kills a task kills its training too.
GUARD = """
exec 3<&0
"$@" </dev/null & command=$!
{ read -r -u 3; kill -KILL 0; } & watch=$!
wait "$command"; code=$?
kill "$watch"
exit "$code"
"""


class CutOffError(Exception):
    """The run did not come to its end for a reason outside of it, so it is worth another attempt, perhaps elsewhere."""


@dataclass(frozen=True)
class Project:
    """A state of the project as it travels to the nodes."""

    tree: str
    """Names the state: Git's hash of all files."""
    bundle: bytes
    """A Git bundle of one commit, `SNAPSHOT`, that holds them."""
    config: str
    """`.dvc/config.local`, which Git does not keep: it may hold the remote's credentials."""


SNAPSHOT = "refs/regbench/snapshot"


@dataclass(frozen=True)
class Outcome:
    """How one run ended. `log` is what it printed if it failed of itself, else None."""

    run: str
    node: str
    seconds: dict
    log: str | None = None


def scratch():
    """The folder for all that a node keeps, its own also where several nodes are on one machine."""
    return Path(os.environ.get("REGBENCH_SCRATCH") or Path.home() / ".cache/regbench").resolve()


def carry_out(project, run, node, fetch, progress):
    """Train and evaluate one run, unless the remote has it, and push what came out.

    Args:
        project: `Project`.
        run: the run, like `l2-0`.
        node: what to call this node.
        fetch: look for the run's results in the remote first.
        progress: called with a few words whenever there is something to say.

    Returns:
        an `Outcome`, also of a run that failed of itself.

    Raises:
        CutOffError: training was killed, or the remote did not answer for ten minutes.
    """
    seconds = {}

    @contextlib.contextmanager
    def timed(name):
        progress(name)
        started = time.monotonic()
        yield
        seconds[name] = round(time.monotonic() - started, 1)

    with timed("clone and pull"):
        folder = patiently(lambda: _workspace(project), progress)
    stages = (f"train@{run}", f"evaluate@{run}")
    # An attempt that is being killed may still be there.
    with _locked(folder / f".regbench/{run}.lock") as lock:

        def repro():
            output = []

            def line(text):
                output.append(text)
                if epoch := re.search(r"epoch \d+/\d+", text):
                    progress(epoch[0])

            pull = ("--pull",) if fetch else ()
            # Not quietly: dvc does not say then that it was the stage that failed.
            code = _command(_dvc("repro", "--single-item", *pull, *stages), folder, lock, line)
            log = "".join(output)
            if code == 0:
                return None
            stage = re.search(r"failed to run: .*, exited with (-?\d+)", log)
            if stage is None:
                raise CutOffError(f"dvc repro did not get as far as the run:\n{log}")
            if stage[1] in ("-9", "137"):
                raise KilledError("the run was killed, perhaps for want of memory")
            return log

        with timed("train and evaluate"):
            log = patiently(repro, progress)
        if log is None:
            with timed("push"):
                patiently(lambda: push(stages, folder, lock, run_cache=True), progress)
    return Outcome(run, node, seconds, log)


def push(targets, folder=Path(), lock=None, run_cache=False):
    """`dvc push` of some stages to its end, with their entries in the run cache or without; `CutOffError` if it fails.

    What it is about to push, dvc notes in its site cache, file by file. A push that is killed meanwhile leaves a list
    cut short, which every later push of the same files takes for the whole one, and then says that all went well. So
    each push gets a site cache of its own.

    dvc pushes the run cache before the files: an entry there whose files are missing would be found before a whole
    one. So the files are pushed first by themselves.
    """
    for options in [(), ("--run-cache",)] if run_cache else [()]:
        with tempfile.TemporaryDirectory() as own:
            _checked(("env", f"DVC_SITE_CACHE_DIR={own}", *_dvc("push", "--quiet", *options, *targets)), folder, lock)


class KilledError(CutOffError):
    """Somebody killed the training; waiting does not help."""


def patiently(attempt, progress=lambda words: None, waits=WAITS):
    """What `attempt` returns; where it raises `CutOffError`, it is called again after each of `waits`, in seconds."""
    for wait in waits:
        try:
            return attempt()
        except KilledError:
            raise
        except CutOffError as error:
            progress(f"the remote does not answer, again in {wait} s ({_last_line(error)})")
            time.sleep(wait)
    return attempt()


def _last_line(error):
    return next((line for line in reversed(str(error).splitlines()) if line.strip()), "")[:200]


def _workspace(project):
    """The node's clone of this state of the project, with the prepared data; the first run that comes makes it."""
    folder = scratch() / project.tree[:16]
    ready = folder / ".regbench/ready"
    with _locked(folder.with_suffix(".lock")):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            bundle = folder.with_suffix(".bundle")
            bundle.write_bytes(project.bundle)
            for command in (
                ("init", "--quiet"),
                ("fetch", "--quiet", str(bundle), SNAPSHOT),
                ("checkout", "--quiet", "--detach", "FETCH_HEAD"),
            ):
                _checked(("git", *command), folder)
            bundle.unlink()
            config = folder / ".dvc/config.local"
            config.touch(mode=0o600)
            config.write_text(project.config)
            _checked(_dvc("pull", "--quiet", "prepare"), folder)
            ready.parent.mkdir(exist_ok=True)
            ready.touch()
    return folder


@contextlib.contextmanager
def _locked(path):
    """Hold a lock; it ends with the last process that has the file open."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _dvc(*arguments):
    # Without --wait-for-lock, dvc gives up after 3 seconds that another run keeps the lock.
    return (sys.executable, "-m", "dvc", "--wait-for-lock", *arguments)


def _checked(command, folder, lock=None):
    """Run a command; `CutOffError` with what it printed where it fails."""
    output = []
    if _command(command, folder, lock, output.append):
        raise CutOffError(f"{' '.join(command)} failed:\n{''.join(output)}")


def _command(command, folder, lock, line):
    """Run a command to its end, `line` called with each line of output; its exit code."""
    # The stages' `python` is the one that Ray's workers have.
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(
        ("bash", "-c", GUARD, "guard", *command),
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        pass_fds=[lock.fileno()] if lock else [],
    ) as process:
        for text in process.stdout:
            line(text)
        return process.wait()
