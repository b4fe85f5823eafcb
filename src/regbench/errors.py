"""Errors that the user can fix: reported in plain words, without a traceback."""

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""


def run(main: Callable[[], None], continues: bool = True) -> None:
    """Call a script's `main`. End with a message instead of a traceback if the user can fix the error.

    Such errors are a `UserError`, a full disk, and files that can't be written or read; the exit code is 1. After
    Ctrl-C, end with one line and exit code 130. With `continues`, this line says that `make repro` continues.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # class names may have letters that a terminal can't show
    then = "; `make repro` continues from here" if continues else ""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"stopped (SIGTERM){then}"))
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        # Let Linux end this stage when the DVC that started it ends. Otherwise a later DVC's stage could run beside it.
        set_signal_on_parents_death = 1
        ctypes.CDLL(None).prctl(set_signal_on_parents_death, signal.SIGTERM)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if message := in_words(error):
            sys.exit(f"error: {message}")
        raise
    except KeyboardInterrupt:
        print(f"\ninterrupted{then}", file=sys.stderr)
        sys.exit(130)


def in_words(error: Exception) -> str | None:
    """A message for an OSError about a full disk or a path that can't be written or read; None for other errors."""
    if not isinstance(error, OSError):
        return None
    where = error.filename or Path.cwd()
    # After an incomplete write, NumPy's error has no errno; it says only how many bytes were written.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or " requested and " in str(error):
        return (
            f"no space is left for {where} ({error.strerror or error}). Free some and run again; it continues from here"
        )
    if error.errno == errno.EROFS:
        return f"{where} can't be written: it is on a read-only file system"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} can't be written or read ({error.strerror}). Change its permissions and run again"
    return None
