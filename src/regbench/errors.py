"""Errors that the user can mend: told in plain words, without a traceback."""

import errno
import os
import re
import select
import signal
import sys
import threading
from pathlib import Path


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""


def run(main):
    """Call a script's `main`; end with a message and exit code 1 on a `UserError`, in one line when interrupted.

    A full disk and a folder that can't be written are the user's to mend as well.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped (SIGTERM); `dvc repro` goes on from here"))
    _end_with_dvc()
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if message := in_words(error):
            sys.exit(f"error: {message}")
        raise
    except KeyboardInterrupt:
        print("\ninterrupted; `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(130)


def in_words(error):
    """What an OSError says of the disk and what to do; None where an error is about something else."""
    if not isinstance(error, OSError):
        return None
    where = error.filename or Path.cwd()
    # NumPy says of a file that it could not write to the end only how much of it was written.
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or " requested and " in str(error):
        return (
            f"no space is left for {where} ({error.strerror or error}). Free some and run again; it goes on from here"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{where} can't be written or read ({error.strerror}). Change its permissions and run again"
    return None


def _end_with_dvc():
    """Let a stage end when the DVC that started it is killed: else the next one would run beside it."""
    if sys.platform != "linux" or "DVC_STAGE" not in os.environ:
        return
    # Between DVC and a stage stands a shell, where it doesn't give its process to its last command (dash, /bin/sh).
    try:
        dvc = os.getppid()
        while b"DVC_STAGE=" in Path(f"/proc/{dvc}/environ").read_bytes():
            status = Path(f"/proc/{dvc}/status").read_text()
            dvc = int(re.search(r"^PPid:\s+(\d+)", status, re.MULTILINE)[1])
        ended = os.pidfd_open(dvc)
    except OSError:  # an old kernel, or another user's process
        return

    def follow():
        select.select([ended], [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, daemon=True).start()
