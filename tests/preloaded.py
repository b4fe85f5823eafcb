"""A `python` that starts at once: forks of processes that have imported TensorFlow, DVC and what the report needs.

The tests start more than a hundred stages and several hundred commands of DVC. Importing TensorFlow takes four seconds
of CPU time, what the report needs one and a half, DVC half a second. Here `python SCRIPT` and `python -m MODULE` run in
a fork that has the caller's arguments, environment variables, working directory and open files. So do the processes
that they start with `sys.executable`. regbench itself is imported in the fork, because each scratch repository has its
own. Programs that never import TensorFlow are forked from a small process: forking a large one takes a tenth of a
second.

Not for tests of how a process starts and ends: limits of the shell, environment variables that Python or a library
reads when it starts, and signals other than SIGKILL do not reach the fork. In a test itself, `sys.executable` is a real
Python. With FRESH=1 in the environment, no process is a fork.
"""

import atexit
import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import NoReturn

LIGHT = (
    "seaborn",
    "scipy.stats",
    "pydantic",
    "rich.live",
    "dvc.cli.parser",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc.utils.strictyaml",
    "networkx",
)
HEAVY = ("tensorflow", "keras", *LIGHT)

CLIENT = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect(sys.argv[1])
    request = json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]).encode() + b"\\n"
    socket.send_fds(connection, [request], [0, 1, 2])
    code = int(connection.recv(8))
if code < 0:
    os.kill(os.getpid(), -code)
os._exit(code)
"""
"""Sends its arguments to a server, waits for the fork, and ends with the same exit code or signal."""

PROGRAMS = {
    "python": """#!/bin/sh
case "$1 $2 $3" in
stages/plan.py* | stages/report.py* | "-m dvc "*) server=light ;;
"-m regbench predict" | "-m regbench export") server=heavy ;;
"-m regbench "*) server=light ;;
*.py\\ * | "-m "*) server=heavy ;;
*) exec '{python}' "$@" ;;
esac
exec '{python}' -IS '{folder}/client.py' "{folder}/$server" "$@"
""",
    "dvc": "#!/bin/sh\nexec '{folder}/python' -m dvc \"$@\"\n",
}


@functools.cache
def programs() -> str | None:
    """A folder for the PATH, with `python` and `dvc`, until this process ends; None where no process should fork."""
    if sys.platform != "linux" or os.environ.get("FRESH"):  # elsewhere system libraries do not survive a fork
        return None
    folder = Path(tempfile.mkdtemp(prefix="regbench-python-"))
    (folder / "client.py").write_text(CLIENT)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text.format(python=sys.executable, folder=folder))
        (folder / name).chmod(0o755)
    # The servers import TensorFlow before `regbench.runtime` can override these settings of the user.
    neutral = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS_", "TF_", "XLA_"))}
    servers = []
    for name in ("light", "heavy"):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(folder / name))
            listening.listen(64)
            server = subprocess.Popen(
                (sys.executable, __file__, str(listening.fileno()), str(folder), name),
                env=neutral | {"KERAS_HOME": str(folder)},
                stdin=subprocess.PIPE,  # closed when this process ends
                pass_fds=[listening.fileno()],
            )
        servers.append(server)

    def stop():
        for server in servers:
            server.communicate()
        shutil.rmtree(folder)

    atexit.register(stop)
    return str(folder)


@functools.cache
def load(modules: tuple[str, ...]) -> None:
    """Import what the forks share."""
    sys.path.remove(str(Path(__file__).parent))
    with open(os.devnull, "w") as nothing:  # TensorFlow's C++ writes a dozen lines
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        for name in modules:
            importlib.import_module(name)
        os.dup2(stderr, 2)
        os.close(stderr)
    gc.freeze()  # a collection in a fork would copy the memory that it shares


def serve(listening: socket.socket, modules: tuple[str, ...]) -> list[str]:
    """Start a fork for each caller. Returns only in a fork, with the caller's arguments.

    When the fork ends, the caller gets its exit code. If the caller ends first, the fork is killed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the callers
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    callers: dict[int, socket.socket | None] = {}
    while True:
        waited = [listening, sys.stdin, woken, *filter(None, callers.values())]
        ready, _, _ = select.select(waited, [], [])
        if sys.stdin in ready:
            os._exit(0)
        if woken in ready:
            os.read(woken, 1 << 16)
        for pid, connection in callers.items():
            if connection in ready:
                kill(pid)
                connection.close()
                callers[pid] = None
        while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if connection := callers.pop(ended[0]):
                with contextlib.suppress(OSError), connection:  # the caller may have ended just now
                    connection.sendall(b"%d" % os.waitstatus_to_exitcode(ended[1]))
        if listening in ready:
            load(modules)
            connection, _ = listening.accept()
            request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
            while not request.endswith(b"\n") and (more := connection.recv(1 << 20)):
                request += more
            if not request.endswith(b"\n"):  # the caller was killed before it had sent everything
                connection.close()
                for number in descriptors:
                    os.close(number)
                continue
            if pid := os.fork():
                callers[pid] = connection
                for number in descriptors:
                    os.close(number)
                continue
            signal.set_wakeup_fd(-1)
            for other in (listening, connection, *filter(None, callers.values())):
                other.close()
            for number in (woken, wake):
                os.close(number)
            return become(request, descriptors)


def kill(pid: int) -> None:
    """Kill a fork and the processes that it has started in its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no session of its own yet
        os.kill(pid, signal.SIGKILL)


def become(request: bytes, descriptors: list[int]) -> list[str]:
    """Take over the caller's open files, working directory and environment; returns its arguments."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    text = {"buffering": 1, "encoding": "utf-8", "errors": "backslashreplace"}
    sys.stdout, sys.stderr = (os.fdopen(number, "w", **text) for number in (1, 2))
    arguments, folder, environment = json.loads(request)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def run(arguments: list[str], executable: str) -> None:
    """Do what `python` does with these arguments."""
    sys.executable = executable
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if arguments[0] == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")


def end(code: object) -> NoReturn:
    """End as Python does, but without tearing down the imported modules: that would copy the shared memory."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    listening, folder, name = socket.socket(fileno=int(sys.argv[1])), sys.argv[2], sys.argv[3]
    arguments = serve(listening, {"light": LIGHT, "heavy": HEAVY}[name])
    try:
        run(arguments, f"{folder}/python")
    except SystemExit as ended:
        end(ended.code)
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        end(1)
    end(0)
