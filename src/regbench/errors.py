"""Errors that the user can mend: reported in plain words, without a traceback."""

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
    """Call a script's `main`; end with a message and exit code 1 on a `UserError`, in one line when interrupted.

    With `continues`, that line says that `make repro` continues. That a disk is full or that a folder can't be written
    is said in words, too.
    """
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # class names may have letters that a terminal can't show
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped (SIGTERM); `make repro` continues from here"))
    if sys.platform == "linux" and "DVC_STAGE" in os.environ:
        # Ask Linux to end this stage with the DVC that started it: else the next DVC's stage would run beside it.
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
        print("\ninterrupted" + "; `make repro` continues from here" * continues, file=sys.stderr)
        sys.exit(130)


def in_words(error: Exception) -> str | None:
    """What an OSError says about the disk and what to do; None for any other error."""
    if not isinstance(error, OSError):
        return None
    where = error.filename or Path.cwd()
    # Of a short write NumPy's error says only how many bytes were written.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or " requested and " in str(error):
        return (
            f"no space is left for {where} ({error.strerror or error}). Free some and run again; it continues from here"
        )
    if error.errno == errno.EROFS:
        return f"{where} can't be written: it is on a read-only file system"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where} can't be written or read ({error.strerror}). Change its permissions and run again"
    return None
