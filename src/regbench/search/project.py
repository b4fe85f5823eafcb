"""A copy of the project in which a search trains: the user's own params.yaml, report and results stay as they are.

It is a clone in `.regbench/search/` with the workspace's uncommitted changes. It shares DVC's cache with the project,
so nothing is trained twice. It has its own checkpoints, so a search that was killed continues after the last epoch.
Experiments saved in the copy are fetched into the project's Git repository.
"""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from regbench import params
from regbench.errors import UserError
from regbench.review import git, parameters
from regbench.runner import local, store

FOLDER = Path(".regbench/search")


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """Lock the copy. Raises a `UserError` if another search has locked it."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("another search is running in this project; wait for it or stop it") from None
        yield


def copy(dataset: str, weights: str | None = None) -> Path:
    """Make the copy, or bring it up to date. Return its folder.

    Args:
        dataset: `data.dataset`; if it is a folder of images with a relative path, it is linked, not copied.
        weights: `model.weights`; copied even if Git ignores the file, as it does if DVC tracks it.
    """
    git.require_commit()
    below = Path(git.output("rev-parse", "--show-prefix").strip())
    clone, top = (FOLDER / "clone").resolve(), git.output("rev-parse", "--show-toplevel").strip()
    commit = git.commit("HEAD")
    if not (clone / ".git").is_dir():
        shutil.rmtree(clone, ignore_errors=True)
        git.output("clone", "--quiet", "--no-checkout", top, str(clone))
    identity = {name: git.output("config", "--default", "", name).strip() for name in ("user.name", "user.email")}
    changed = _listed("diff", "--name-only", "--relative", "-z", "HEAD")
    new = _listed("ls-files", "--others", "--exclude-standard", "-z")
    project, here = clone / below, Path.cwd()
    with contextlib.chdir(clone):
        git.output("fetch", "--quiet", top, "HEAD")
        # This keeps what Git ignores: images, runs and checkpoints.
        git.output("clean", "--quiet", "--force", "-d")
        git.output("checkout", "--quiet", "--force", "--detach", commit)
        for name, value in identity.items():
            if value:
                git.output("config", name, value)
    images = Path(dataset).expanduser()
    ignored = [Path(weights)] if weights and not Path(weights).is_absolute() else []
    for path in changed + [path for path in new if not path.is_relative_to(images)] + ignored:
        (project / path).unlink(missing_ok=True)
        if path.is_file():
            (project / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, project / path)
    if images.is_dir() and not images.is_absolute():
        _link(project / images, images.resolve(), here)
    _configure(here / ".dvc", project / ".dvc")
    return project


def write_params(text: str) -> params.Params:
    """Write params.yaml of the copy, the working directory. Remove runs that it does not name; the cache has them."""
    parameters.PATH.write_text(text, encoding="utf-8")
    settings = params.load()
    named = {run.key for run in settings.runs}
    for folder in Path("runs").glob("*"):
        if folder.name not in named:
            shutil.rmtree(folder)
    return settings


def save_experiment(name: str, home: Path) -> None:
    """Save the state of the copy, the working directory, as an experiment, and fetch it into the user's repository."""
    local.dvc("exp", "save", "--force", "--name", name)
    reference = _reference(name, git.commit("HEAD"))
    clone = git.output("rev-parse", "--show-toplevel").strip()
    with contextlib.chdir(home):
        git.output("fetch", "--quiet", "--force", "--no-write-fetch-head", clone, f"{reference}:{reference}")


def is_saved(name: str, text: str) -> bool:
    """Whether HEAD of the user's repository, the working directory, has this experiment, with these params."""
    return git.blob(_reference(name, git.commit("HEAD")), parameters.PATH) == text.encode()


def _reference(name: str, commit: str) -> str:
    """Where DVC keeps an experiment."""
    return f"refs/exps/{commit[:2]}/{commit[2:]}/{name}"


def _listed(*command: str) -> list[Path]:
    return [Path(name) for name in git.output(*command).split("\0") if name and Path(name) != parameters.PATH]


def _link(place: Path, images: Path, home: Path) -> None:
    """Link the images into the copy, so that their relative path works there. It already has those that Git tracks."""
    place = Path(os.path.normpath(place))
    if not place.is_relative_to((home / FOLDER).resolve()):
        raise UserError(f"data.dataset: give {images} as an absolute path, so that the search's copy finds it")
    for link in [place, *place.rglob("*")]:
        if link.is_symlink():  # from an earlier search
            link.unlink()
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(images)
        return
    for path in images.rglob("*"):
        there = place / path.relative_to(images)
        if path.is_file() and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(path)


def _configure(home: Path, copied: Path) -> None:
    """Give the copy the project's DVC cache and remotes. Copied config files would not do: they have relative paths."""
    from dvc.config import Config, merge

    cache, _ = store.facts()
    of_project = Config(str(home))
    (copied / "config.local").unlink(missing_ok=True)
    (copied / "config.local").touch(mode=0o600)
    with Config(str(copied)).edit("local") as config:
        for level in ("repo", "local"):
            merge(config, of_project.load_one(level))
        merge(config, {"cache": {"dir": str(cache)}})
