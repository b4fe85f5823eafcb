"""Errors that the user can mend: told in plain words, without a traceback."""

import signal
import sys


class UserError(Exception):
    """Something outside the code is wrong; the message says what, and what to do about it."""


def run(main):
    """Call a script's `main`; end with a message and exit code 1 on a `UserError`, in one line when interrupted."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped (SIGTERM); `dvc repro` goes on from here"))
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("\ninterrupted; `dvc repro` goes on from here", file=sys.stderr)
        sys.exit(130)
