"""dvc.lock, where DVC notes what each stage was run on and what it wrote.

    python -m regbench.lock      # puts right what a kill in the middle of DVC's writing cut off

DVC notices a changed file by its time, size and inode. Bits that change without them, as on a failing disk, it does
not; `check` compares the bytes themselves.
"""

import hashlib
import json
import re
import time
from pathlib import Path

import yaml

from regbench import errors
from regbench.errors import UserError

LOCK = Path("dvc.lock")
RWLOCK = Path(".dvc/tmp/rwlock")


def check(*stages):
    """Compare the output files of stages with the MD5s in dvc.lock.

    Folders are left out, and what DVC has not run yet.

    Raises:
        UserError: a file is another one than its stage wrote.
    """
    try:
        noted = _parse(LOCK.read_text(encoding="utf-8"))["stages"]
        outputs = [
            (stage, Path(output["path"]), str(output.get("md5")))
            for stage in stages
            for output in noted.get(stage, {}).get("outs", ())
        ]
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{LOCK} is damaged ({error}); `make repro` mends it") from None
    for stage, path, expected in outputs:
        if not path.is_file() or expected.endswith(".dir"):
            continue
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != expected:
            raise UserError(
                f"{path} is damaged, or not what DVC ran: its MD5 is {found}, in {LOCK} {expected}. Delete it and run "
                f"`dvc repro`; if that brings the same again, `dvc repro -f -s {stage}`"
            )


def mend():
    """Repair what DVC, killed while it wrote, left half-written and then refuses to read; say what was done.

    DVC writes both files in place. Of dvc.lock the whole stages stay; DVC's run cache has the outputs of the others.
    """
    if _damaged(LOCK, _as_dvc_does):
        text = LOCK.read_text(encoding="utf-8", errors="replace")
        starts = [found.start() for found in re.finditer(r"^  [^\s#].*:$", text, re.MULTILINE)]
        # The first is kept only before another: a lock file without a stage says no more than none.
        whole = next((text[:end] for end in reversed(starts[1:]) if not _fails(_as_dvc_does, text[:end])), None)
        if whole:
            LOCK.write_text(whole, encoding="utf-8")
            print(f"{LOCK} was cut off; its {starts.index(len(whole))} whole stages are kept")
        else:
            LOCK.unlink()
            print(f"{LOCK} was cut off; deleted")
    if _damaged(RWLOCK, json.loads):
        RWLOCK.unlink()
        print(f"{RWLOCK} was cut off; deleted")


def _parse(text):
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _as_dvc_does(text):
    """Parse a lock file; a ValueError where DVC would refuse it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(_parse(text))
    except Invalid as error:
        raise ValueError(error) from None


def _damaged(path, parse):
    """Whether a file can't be parsed, nor a second later: another DVC may be writing it just now."""
    for pause in (1, 0):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return False
        if not _fails(parse, text):
            return False
        time.sleep(pause)
    return True


def _fails(parse, text):
    try:
        parse(text)
    except ValueError:
        return True
    return False


if __name__ == "__main__":
    errors.run(mend)
