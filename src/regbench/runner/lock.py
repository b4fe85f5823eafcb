"""dvc.lock, where DVC notes what each stage was run on and what it wrote: mend it where DVC refuses to read it.

A merge conflict or a kill while DVC was writing leaves such a file. DVC's run cache and the remote store have the
results that its replacement does not name, so nothing is trained again.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

from regbench.report.tracked import CONFLICT
from regbench.review import git

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def mend() -> list[str]:
    """Replace a dvc.lock that DVC refuses by the last commit's, or delete it; delete a damaged rwlock.

    Returns:
        what was done, a line each.
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
    return done


def _is_refused(path: Path, read: Callable[[], bool]) -> bool:
    """Whether a file can't be read, nor a second later: another DVC may be writing it just now."""
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


def _read_rwlock() -> bool:
    try:
        json.loads(RWLOCK.read_bytes())
    except ValueError:
        return False
    return True
