"""DVC's cache and its remote store: take results from them instead of training, and send results to them.

DVC's command line can't do this for a state that is not in a commit, so this module uses DVC's Python API, in a child
process. Any error of the remote store ends that process with a one-line message.

    python -m regbench.runner.store restore --pull prepare train@l2-0 evaluate@l2-0
    python -m regbench.runner.store push
"""

import argparse
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from regbench.errors import UserError
from regbench.review import git
from regbench.runner.lock import LOCK

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StoreError(UserError):
    """The cache or the remote store can't be read or written; DVC's own message has been printed."""


def facts() -> tuple[Path, str | None]:
    """The folder of DVC's cache, and the name of the default remote store, or None if there is none."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local_cache_dir), repo.config["core"].get("remote")
    except DvcException as error:
        raise UserError(f"DVC can't be used here: {error}") from None


def restore(stages: Sequence[str], pull: bool = False, pushed: bool = False) -> dict[str, str]:
    """Restore outputs of stages from DVC's cache or the remote store, and record them in dvc.lock.

    Args:
        stages: names, each after those it depends on.
        pull: look in the remote store for what the cache does not have.
        pushed: something was pushed before. So if the remote store's folder is missing, that is an error; it does not
            mean that the store is empty.

    Returns:
        {stage: "current", "cached" or "pulled"}, without the stages that have to be run.

    Raises:
        StoreError: the remote store could not be read.
    """
    options = [option for option, wanted in (("--pull", pull), ("--pushed", pushed)) if wanted]
    return json.loads(_child("restore", *options, *stages))


def push() -> dict[str, int]:
    """Send everything that a clone at any commit of this branch needs, and the run cache's results of other states.

    Returns:
        {"files": how many were sent, "entries": how many the run cache has, "commits": how many commits changed
        dvc.lock, "lost": how many files are neither in the cache nor in the remote store}

    Raises:
        StoreError: the remote store could not be written.
    """
    # After a killed push, DVC's site cache may list files as pushed that the remote store does not have.
    with tempfile.TemporaryDirectory() as own:
        return json.loads(_child("push", DVC_SITE_CACHE_DIR=own))


def _child(*arguments: str, **variables: str) -> str:
    command = (sys.executable, "-m", "regbench.runner.store", *arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    if done.returncode:
        raise StoreError("the cache or the remote store can't be used, as said above")
    return done.stdout


# In the child process


def _restore(repo: "Repo", names: Sequence[str], pull: bool, pushed: bool) -> dict[str, str]:
    from dvc.dvcfile import load_file
    from dvc.stage.cache import RunCacheNotSupported

    stages = load_file(repo, "dvc.yaml").stages
    found, restored = {}, []

    def look(pull: bool = False, own: bool = False) -> None:
        lacking = set()
        for name in names:
            if name in found:
                continue
            # This loads a new Stage each time: a failed attempt leaves new inputs and old outputs in its Stage.
            stage = stages[name]
            if not lacking.isdisjoint(dep.fs_path for dep in stage.deps):
                pass  # an input was not found, and the file in its place belongs to another state
            elif not stage.changed():
                found[name] = "current"
            elif is_restored(stage, pull, own):
                found[name] = "pulled" if pull else "cached"
                stage.save(run_cache=False)
                restored.append(stage)
            if name not in found:
                lacking.update(out.fs_path for out in stage.outs)

    look()
    if pull and len(found) < len(names):
        place = repo.cloud.get_remote_odb()
        if place.fs.protocol == "local" and not Path(place.path).exists():
            sys.exit(f"{Path(place.path).parents[1]} holds nothing: nothing was pushed to it yet, or it is not mounted")
        print(f'Looking for results in the remote store "{repo.config["core"]["remote"]}"', file=sys.stderr)
        # A web server can't list its run cache, but files that dvc.lock names can still be pulled.
        with contextlib.suppress(RunCacheNotSupported):
            repo.stage_cache.pull(None)
        look(pull=True)
    # dvc.lock may name outputs of another machine that no store has.
    if len(found) < len(names):
        look(own=True)
    if pushed:
        place = repo.cloud.get_remote_odb()
        place.fs.ls(place.path)
    # All at once: `dvc repro` rewrites dvc.lock for each stage, which takes hours for 1,000 stages.
    if restored:
        restored[0].dvcfile.dump_stages(restored, update_pipeline=False)
    return found


def is_restored(stage: "PipelineStage", pull: bool = False, own: bool = False) -> bool:
    """Restore a stage's outputs from DVC's cache. Returns whether this succeeded.

    Args:
        stage: a stage whose inputs are in the workspace. After a failed attempt, this object can't be used again.
        pull: look in the remote store for what the cache does not have.
        own: accept any outputs in the run cache that were made from these inputs, whatever dvc.lock names.
    """
    from dvc.dependency.base import DependencyDoesNotExistError
    from dvc.stage.cache import RunCacheNotFoundError
    from dvc_data.hashfile.hash_info import HashInfo

    if own:
        for out in stage.outs:
            out.hash_info = HashInfo()
    try:
        stage.repo.stage_cache.restore(stage, pull=pull)
    except (RunCacheNotFoundError, DependencyDoesNotExistError):
        return False
    return True


def _push(repo: "Repo") -> dict[str, int]:
    from dvc_data.hashfile.hash_info import HashInfo

    commits = git.output("log", "--format=%H", "--full-history", "HEAD", "--", str(LOCK)).split()
    noted = {git.blob(commit, LOCK) or b"" for commit in commits}
    files = [LOCK, *Path(repo.stage_cache.cache_dir).glob("*/*/*")]
    noted |= {file.read_bytes() for file in files if file.exists()}
    wanted = {md5 for data in noted for md5 in _outputs(data)}
    cache = repo.cache.local
    for folder in [md5 for md5 in wanted if md5.endswith(".dir") and cache.exists(md5)]:
        listed = json.loads(Path(cache.oid_to_path(folder)).read_text(encoding="utf-8"))
        wanted |= {file["md5"] for file in listed}
    here = {md5 for md5 in wanted if cache.exists(md5)}
    elsewhere = wanted - here
    there = set(repo.cloud.get_remote_odb().oids_exist(list(elsewhere))) if elsewhere else set()
    # The files first: a run cache entry without its files could be found instead of a complete one.
    sent = repo.cloud.push([HashInfo("md5", md5) for md5 in sorted(here)])
    if sent.failed:
        raise UserError(f"{len(sent.failed)} files could not be sent")
    return {
        "files": len(sent.transferred),
        "entries": len(repo.stage_cache.push(None)),
        "commits": len(commits),
        "lost": len(elsewhere - there),
    }


def _outputs(data: bytes) -> Iterator[str]:
    """The MD5s of the outputs kept by DVC that a dvc.lock or a run cache entry lists."""
    try:
        noted = yaml.load(data, Loader=LOADER)
        stages = noted.get("stages", {"": noted})
        for name, stage in stages.items():
            if name != "report":  # its outputs are in Git
                yield from (output["md5"] for output in stage.get("outs", ()))
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return  # a damaged file lists nothing


def main() -> None:
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the runner reports an interrupt
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("restore", "push"))
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--pull", action="store_true")
    parser.add_argument("--pushed", action="store_true")
    arguments = parser.parse_intermixed_args()
    from dvc.repo import Repo

    # At the level INFO, DVC logs for each stage that it is cached.
    logging.getLogger("dvc").setLevel(logging.WARNING)
    with Repo() as repo, repo.lock:
        if arguments.action == "push":
            result = _push(repo)
        else:
            result = _restore(repo, arguments.stages, arguments.pull, arguments.pushed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
