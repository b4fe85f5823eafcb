"""Curves of the runs while they train, in a browser page that updates itself.

A local server reads the logs of running trainings (`regbench.live`) and the histories of runs that are done. The page,
watch.html, loads nothing from other servers.
"""

import contextlib
import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from regbench import live, params, plan
from regbench.errors import UserError
from regbench.review import lockfile

HOST = "127.0.0.1"
PAGE = Path(__file__).with_name("watch.html")
ONLY_OWN = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""Content-Security-Policy: what the browser allows the page to load."""


def watch(port: int = 0) -> None:
    """Serve the page until Ctrl-C.

    Args:
        port: the port to listen on; 0 takes a free one.

    Raises:
        UserError: params.yaml can't be read, or the port is taken.
    """
    state()
    with serving(port) as server, contextlib.suppress(KeyboardInterrupt):
        print(f"http://{HOST}:{server.server_port}/ shows the curves while runs train. Ctrl-C ends it", flush=True)
        server.serve_forever()
    print("\nended; the runs go on", flush=True)


@contextlib.contextmanager
def serving(port: int = 0) -> Iterator[ThreadingHTTPServer]:
    """A server that listens; call its `serve_forever` to answer requests."""
    try:
        server = ThreadingHTTPServer((HOST, port), _Answer)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {port} can't be used ({error}); without --port a free one is taken") from None
    server.daemon_threads = True
    with server:
        yield server


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        # Against DNS rebinding: another site could make its own host name point to this machine.
        if self.headers.get("Host") not in {f"{name}:{self.server.server_port}" for name in (HOST, "localhost")}:
            self.send_error(403)
        elif self.path == "/":
            self._send("text/html; charset=utf-8", PAGE.read_bytes())
        elif self.path == "/runs.json":
            try:
                found = state()
            except UserError as error:
                found = {"problem": str(error)}
            self._send("application/json", json.dumps(found, allow_nan=False).encode())
        else:
            self.send_error(404)

    def _send(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        for name, value in (
            ("Content-Type", kind),
            ("Content-Length", str(len(content))),
            ("Content-Security-Policy", ONLY_OWN),
            ("Cache-Control", "no-store"),
        ):
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Do not log requests."""


# What the page draws


def state() -> dict[str, Any]:
    """What the page shows: {"names", "epochs", "said", "runs": [{"run", "name", "state", "rows"}]}.

    Raises:
        UserError: params.yaml can't be read.
    """
    settings = _settings(*_stamp(Path("params.yaml")))
    done_on = _plans_done(*_stamp(lockfile.LOCK))
    runs = []
    for run in settings.runs:
        words, rows = _run(run.key, settings.train.epochs, done_on)
        runs.append({"run": run.key, "name": run.name, "state": words, "rows": [_json(row) for row in rows]})
    counts = Counter(run["state"] for run in runs)
    diverged = counts.pop("diverged", 0)
    ended = f"{counts.pop('done', 0) + diverged} of {len(runs)} runs done" + f" ({diverged} diverged)" * bool(diverged)
    others = [f"{count} {words}" for words, count in counts.items()]
    return {
        "names": list(settings.reg),
        "epochs": settings.train.epochs,
        "said": ", ".join([ended, *others]),
        "runs": runs,
    }


def _run(key: str, epochs: int, done_on: dict[str, str | None]) -> tuple[str, list[dict[str, float]]]:
    """A run's state in one word, and its epochs so far, without those trained on an earlier plan."""
    plan_path, history, log = plan.FOLDER / key / "train.json", Path("runs", key, "history.csv"), live.log_of(key)
    if live.training(key):
        return "training", live.read(key)
    rows = []
    if history.exists() and plan_path.exists() and done_on.get(key) == _md5(*_stamp(plan_path)):
        with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error):
            rows = live.rows_of(history.read_text(encoding="utf-8").splitlines())
        rates = {row["epoch"]: row["images_per_second"] for row in live.read(key)}
        rows = [row | {"images_per_second": rates.get(row["epoch"], math.nan)} for row in rows]
        words = "done"
    elif log.exists() and plan_path.exists() and log.stat().st_mtime >= plan_path.stat().st_mtime:
        rows = live.read(key)
        words = "done" if rows and rows[-1]["epoch"] == epochs else "interrupted"
    else:
        words = "waiting"
    return ("diverged" if rows and math.isnan(rows[-1]["cross_entropy"]) else words), rows


def _json(row: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in row.items() if name != "seconds"}


def _stamp(path: Path) -> tuple[Path, int]:
    """A path and its modification time in ns, a cache key: the page asks every 2 seconds; only changed files are read.

    The time is 0 if there is no such file.
    """
    try:
        return path, path.stat().st_mtime_ns
    except OSError:
        return path, 0


@lru_cache(2)
def _settings(path: Path, changed: int) -> params.Params:
    return params.load(path)


@lru_cache(2)
def _plans_done(path: Path, changed: int) -> dict[str, str | None]:
    """{run: MD5 of the plan that it was trained on}, from dvc.lock."""
    try:
        stages = lockfile.read(path)
    except UserError:  # there is none yet, or DVC is writing it
        return {}
    found = {}
    for name, stage in stages.items():
        kind, _, run = name.partition("@")
        if kind == "train":
            found[run] = stage.deps.get(f"{plan.FOLDER.as_posix()}/{run}/train.json")
    return found


@lru_cache(4096)
def _md5(path: Path, changed: int) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
