"""What the review and the runner ask of Git. Errors are in words."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from regbench.errors import UserError

OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Variables that lead Git to another repository than that of the working directory; its hooks set some of them."""


def require_commit() -> None:
    """Raise a `UserError` unless this is a Git repository with a commit."""
    output("rev-parse", "--is-inside-work-tree")
    if commit("HEAD") is None:
        raise UserError("nothing is committed here yet; run `git add --all` and `git commit`")


def commit(revision: str) -> str | None:
    """The hash of the commit that a revision names, or None where there is none."""
    done = _run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return None if done.returncode else done.stdout.decode().strip()


def named(name: str) -> str:
    """The hash of the commit that a revision or an experiment of DVC's names.

    Experiments of several commits may have a name; then it is the last commit's, or else the newest one.

    Raises:
        UserError: there is none.
    """
    if found := commit(name):
        return found
    listed = output("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps/")
    having = dict(line.rsplit(" ", 1) for line in listed.splitlines() if f"/{name} " in line)
    head = commit("HEAD") or ""
    if found := having.get(f"refs/exps/{head[:2]}/{head[2:]}/{name}") or next(iter(having.values()), None):
        return found
    raise UserError(f"there is no commit and no experiment {name} here; run `git fetch origin` or `dvc exp list`")


def merge_base(first: str, second: str) -> str:
    """The commit at which two revisions parted."""
    done = _run("merge-base", first, second)
    if done.returncode:
        raise UserError(f"{first} and {second} share no history here (in CI: fetch the whole history)")
    return done.stdout.decode().strip()


def blob(revision: str, path: str | Path) -> bytes | None:
    """A file's bytes in a commit, or None where it is not in it; the path starts at the working directory."""
    done = _run("show", f"{revision}:./{Path(path).as_posix()}")
    return None if done.returncode else done.stdout


def uncommitted(paths: Iterable[str | Path]) -> list[str]:
    """Those of the files that differ from the last commit or are not in it, in their order."""
    paths = [Path(path).as_posix() for path in paths]
    changed = _names("diff", "--name-only", "--relative", "-z", "HEAD", "--", *paths)
    committed = _names("ls-tree", "-r", "--name-only", "-z", "HEAD", "--", *paths)
    return [path for path in paths if path in changed or (path not in committed and Path(path).exists())]


def changed_since(revision: str, paths: Iterable[str | Path]) -> list[str]:
    """Those files below the paths that differ between a commit and the workspace, new ones left out."""
    return sorted(_names("diff", "--name-only", "--relative", "-z", revision, "--", *map(str, paths)))


def last_commit_of(path: str | Path) -> str | None:
    """The last commit that changed a file, or None where none has."""
    return output("log", "-1", "--format=%H", "--", str(path)).strip() or None


def output(*arguments: str, input: bytes | None = None, **variables: str) -> str:
    """What a Git command prints.

    Args:
        arguments: the command, without `git`.
        input: what it reads from its standard input.
        variables: further environment variables.

    Raises:
        UserError: it failed; with what Git says.
    """
    done = _run(*arguments, input=input, **variables)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()[-500:]
        raise UserError(f"`git {arguments[0]}` failed in {Path.cwd()}: {reason}")
    return done.stdout.decode(errors="replace")


def _names(*arguments: str) -> set[str]:
    return {name for name in output(*arguments).split("\0") if name}


def _run(*arguments: str, input: bytes | None = None, **variables: str) -> subprocess.CompletedProcess:
    try:
        command = ["git", "--literal-pathspecs", "-c", "log.showSignature=false", *arguments]
        inherited = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER}
        environment = inherited | {"LC_ALL": "C"} | variables
        return subprocess.run(command, input=input, capture_output=True, env=environment)
    except FileNotFoundError:
        raise UserError("Git is not installed, or not on the PATH") from None
    except ValueError as error:  # a path that no file can have, from a damaged file
        raise UserError(f"`git {arguments[0]}` can't be asked about {arguments[-1]!r}: {error}") from None
