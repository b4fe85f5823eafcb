"""A `python` that starts at once: forks of one process that has imported TensorFlow, DVC and what the report needs.

The tests start more than a hundred stages and several hundred commands of DVC. Importing TensorFlow takes four seconds
of CPU time, what the report needs one and a half, DVC half a second. Here `python SCRIPT` and `python -m MODULE` run in
a fork that has the caller's arguments, environment variables, working directory and open files, and so does what they
start by `sys.executable`. regbench itself is imported in the fork, because each scratch repository has its own.

Not for tests of how a process starts and ends: limits of the shell, environment variables that Python or a library
reads when it starts, and signals other than SIGKILL do not reach the fork. `sys.executable` of a test is a real Python.
With FRESH=1 in the environment, all are.
"""

import atexit
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

MODULES = (
    "tensorflow",
    "keras",
    "seaborn",
    "scipy.stats",
    "pydantic",
    "dvc.cli.parser",
    "dvc.repo.experiments.queue.celery",
    "dvc.repo.index",
    "dvc.repo.plots",
    "dvc.utils.strictyaml",
    "networkx",
)

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
"""Hands its arguments over, waits, and ends as the fork has ended."""

PROGRAMS = {
    "python": """#!/bin/sh
case $1 in
*.py | -m) exec '{python}' -IS '{folder}/client.py' '{folder}/socket' "$@" ;;
*) exec '{python}' "$@" ;;
esac
""",
    "dvc": "#!/bin/sh\nexec '{folder}/python' -m dvc \"$@\"\n",
}


@functools.cache
def programs() -> str | None:
    """A folder for the PATH, with `python` and `dvc` that end with this process; None where no process should fork."""
    if sys.platform != "linux" or os.environ.get("FRESH"):  # elsewhere system libraries do not survive a fork
        return None
    folder = Path(tempfile.mkdtemp(prefix="regbench-python-"))
    (folder / "client.py").write_text(CLIENT)
    for name, text in PROGRAMS.items():
        (folder / name).write_text(text.format(python=sys.executable, folder=folder))
        (folder / name).chmod(0o755)
    # What a user's own settings would change, `regbench.runtime` sets before TensorFlow is imported.
    neutral = {name: value for name, value in os.environ.items() if not name.startswith(("KERAS_", "TF_", "XLA_"))}
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder / "socket"))
        listening.listen(64)
        process = subprocess.Popen(
            (sys.executable, __file__, str(listening.fileno()), str(folder)),
            env=neutral | {"KERAS_HOME": str(folder)},
            stdin=subprocess.PIPE,  # closed when this process ends
            pass_fds=[listening.fileno()],
        )
    atexit.register(process.communicate)
    return str(folder)


@functools.cache
def load() -> None:
    """Import what the forks share."""
    sys.path.remove(str(Path(__file__).parent))
    with open(os.devnull, "w") as nothing:  # TensorFlow's C++ writes a dozen lines
        stderr = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        for name in MODULES:
            importlib.import_module(name)
        os.dup2(stderr, 2)
        os.close(stderr)
    gc.freeze()  # a collection in a fork would copy the memory that it shares


def serve(listening: socket.socket, folder: str) -> list[str]:
    """Let a fork answer each caller; returns there, with the caller's arguments."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the forks
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the callers
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            shutil.rmtree(folder)
            os._exit(0)
        load()
        connection, _ = listening.accept()
        if not os.fork():
            listening.close()
            return answer(connection)
        connection.close()


def answer(connection: socket.socket) -> list[str]:
    """Become what a caller asked for in another fork, which ends with the caller; returns there."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not request.endswith(b"\n"):
        request += connection.recv(1 << 20)
    if child := os.fork():
        ended = threading.Event()

        def end_with_the_caller():
            connection.recv(1)
            if not ended.is_set():
                os.killpg(0, signal.SIGKILL)

        threading.Thread(target=end_with_the_caller, daemon=True).start()
        _, status = os.waitpid(child, 0)
        ended.set()
        connection.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        os._exit(0)
    connection.close()
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
    """What `python` does with these arguments."""
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


if __name__ == "__main__":
    listening, folder = socket.socket(fileno=int(sys.argv[1])), sys.argv[2]
    run(serve(listening, folder), f"{folder}/python")
