"""Git commands of the review, the search and the runner. A failure becomes a readable `UserError`."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from regbench.errors import UserError

OF_ANOTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_INDEX_FILE", "GIT_PREFIX")
"""Variables that make Git use a repository other than the working directory's; Git sets some of them in hooks."""


def require_commit() -> None:
    """Raise a `UserError` unless this is a Git repository with a commit."""
    output("rev-parse", "--is-inside-work-tree")
    if commit("HEAD") is None:
        raise UserError("nothing is committed here yet; run `git add --all` and `git commit`")


def commit(revision: str) -> str | None:
    """The hash of the commit that a revision names, or None if there is none."""
    done = _run("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    return None if done.returncode else done.stdout.decode().strip()


def named(name: str) -> str:
    """The hash of the commit that a revision or the name of a DVC experiment stands for.

    Several experiments may have the same name. The one based on HEAD comes first, otherwise the newest one.

    Raises:
        UserError: there is no such revision or experiment.
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
    """The last common ancestor of two revisions."""
    done = _run("merge-base", first, second)
    if done.returncode:
        raise UserError(f"{first} and {second} share no history here (in CI: fetch the whole history)")
    return done.stdout.decode().strip()


def blob(revision: str, path: str | Path) -> bytes | None:
    """A file's bytes in a commit, or None if the commit lacks it. The path is relative to the working directory."""
    done = _run("show", f"{revision}:./{Path(path).as_posix()}")
    return None if done.returncode else done.stdout


def uncommitted(paths: Iterable[str | Path]) -> list[str]:
    """The files, in the given order, that differ from the last commit or are not in it."""
    paths = [Path(path).as_posix() for path in paths]
    changed = _names("diff", "--name-only", "--relative", "-z", "HEAD", "--", *paths)
    committed = _names("ls-tree", "-r", "--name-only", "-z", "HEAD", "--", *paths)
    return [path for path in paths if path in changed or (path not in committed and Path(path).exists())]


def changed_since(revision: str, paths: Iterable[str | Path]) -> list[str]:
    """The files below the paths that differ between a commit and the workspace; untracked files are left out."""
    return sorted(_names("diff", "--name-only", "--relative", "-z", revision, "--", *map(str, paths)))


def last_commit_of(path: str | Path) -> str | None:
    """The last commit that changed a file, or None if there is none."""
    return output("log", "-1", "--format=%H", "--", str(path)).strip() or None


def output(*arguments: str, input: bytes | None = None, **variables: str) -> str:
    """What a Git command prints.

    Args:
        arguments: the command, without `git`.
        input: bytes for its standard input.
        variables: further environment variables.

    Raises:
        UserError: the command failed; the message quotes Git.
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
    except ValueError as error:  # an impossible path (with a null byte), from a damaged file
        raise UserError(f"`git {arguments[0]}` can't be asked about {arguments[-1]!r}: {error}") from None
