"""Repair dvc.lock, where DVC records the inputs and outputs of each stage, if DVC refuses to read it.

A merge conflict, or a kill while DVC was writing, leaves such a file. Its replacement may not list all results. DVC's
run cache and the remote store still have them, so nothing is trained again.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from regbench.report.tracked import CONFLICT
from regbench.review import git

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def mend() -> list[str]:
    """Replace a dvc.lock that DVC refuses with the last commit's, or delete it; delete a damaged rwlock.

    Entries of processes that have ended are removed from a valid rwlock.

    Returns:
        one line for each repair.
    """
    done = []
    if _is_refused(LOCK, _read_lock):
        in_conflict = CONFLICT.search(LOCK.read_text(encoding="utf-8", errors="replace"))
        problem = f"{LOCK} {'has a merge conflict' if in_conflict else 'is damaged'}"
        LOCK.write_bytes(git.blob("HEAD", LOCK) or b"")
        if _read_lock():
            done.append(f"{problem}; took the one of this branch's last commit instead")
        else:
            LOCK.unlink()
            done.append(f"{problem}; deleted it")
    if _is_refused(RWLOCK, _read_rwlock):
        RWLOCK.unlink()
        done.append(f"{RWLOCK} is damaged; deleted it")
    _release_ended()
    return done


def _release_ended() -> None:
    """Remove the entries of killed processes from the rwlock.

    DVC treats a zombie as alive: a process that has ended, but whose parent has not collected its exit code. In a
    container whose first process is a shell, a zombie stays forever.
    """
    from dvc.lock import make_lock

    if not RWLOCK.exists():
        return
    with make_lock(f"{RWLOCK}.lock", tmp_dir=str(RWLOCK.parent)):
        held = _rwlock()
        written = {path: it for path, it in held["write"].items() if not _has_ended(it["pid"])}
        read = {path: [it for it in them if not _has_ended(it["pid"])] for path, them in held["read"].items()}
        left = {"write": written, "read": {path: them for path, them in read.items() if them}}
        if left != held:
            RWLOCK.write_text(json.dumps(left), encoding="utf-8")


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_refused(path: Path, read: Callable[[], bool]) -> bool:
    """Whether a file can't be read now and still can't a second later: another DVC may be writing it just now."""
    for pause in (1, 0):
        if not path.exists() or read():
            return False
        time.sleep(pause)
    return True


def _read_lock() -> bool:
    """Whether DVC's own reader accepts dvc.lock."""
    from dvc.exceptions import DvcException
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from dvc.utils import strictyaml

    try:
        strictyaml.load(str(LOCK), COMPILED_LOCKFILE_SCHEMA)
    except DvcException:
        return False
    return True


def _rwlock() -> dict:
    """The content of the rwlock, checked with DVC's own schema."""
    from dvc.rwlock import SCHEMA

    return SCHEMA(json.loads(RWLOCK.read_bytes()))


def _read_rwlock() -> bool:
    from voluptuous import Invalid

    try:
        _rwlock()
    except (ValueError, Invalid):
        return False
    return True
