"""One reader for the results that Git tracks: report.json, metrics/summary.json, dvc.lock.

A merge may leave conflict markers in them; edits by hand or disk errors may damage them. Each error message says
what is wrong and how to fix it.
"""

import re
from pathlib import Path

from regbench.errors import UserError

WAY_OUT = "resolve params.yaml, run `make repro`, and commit"
CONFLICT = re.compile(r"^(<{7}|={7}|>{7}|\|{7})( .*)?$", re.MULTILINE)
CONFLICT_IN_PAGE = re.compile(r"^(<{7}|>{7}|\|{7})( .*)?$", re.MULTILINE)
"""In Markdown, ======= may underline a heading."""


def read(path: str | Path) -> bytes:
    """A file's bytes. Raises a `UserError` if it is missing or can't be read."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no {path}; run `make repro`") from None
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror})") from None


def text(data: bytes, where: str | Path, conflict: re.Pattern = CONFLICT) -> str:
    """The text of a tracked file.

    Args:
        data: its bytes, in the workspace or in a commit.
        where: what to call it in messages.
        conflict: the pattern of a conflict marker.

    Raises:
        UserError: it has conflict markers or is not UTF-8 text.
    """
    try:
        decoded = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(where, error) from None
    if found := conflict.search(decoded):
        line = decoded[: found.start()].count("\n") + 1
        raise UserError(f"{where} has a merge conflict in line {line}: {WAY_OUT}")
    return decoded


def damaged(where: str | Path, reason: object) -> UserError:
    """The error for a file that is not as the pipeline wrote it."""
    return UserError(f"{where} is damaged ({' '.join(str(reason).split())[:200]}): {WAY_OUT}")
