"""DVC's cache and its remote store: take results from them instead of training, and send results to them.

DVC's command line can't do either for a state that no commit holds, so this uses DVC's Python API. It does so in a
process of its own, which anything that goes wrong with a remote store ends with one line of words.

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
    """The cache or the remote store can't be read or written; DVC's own words have been printed."""


def facts() -> tuple[Path, str | None]:
    """Where DVC's cache lies, and the name of the default remote store or None."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            return Path(repo.cache.local_cache_dir), repo.config["core"].get("remote")
    except DvcException as error:
        raise UserError(f"DVC can't be used here: {error}") from None


def restore(stages: Sequence[str], pull: bool = False, pushed: bool = False) -> dict[str, str]:
    """Bring outputs of stages that DVC's cache or the remote store has here, and note them in dvc.lock.

    Args:
        stages: names, each behind those it depends on.
        pull: look into the remote store for what the cache lacks.
        pushed: something was pushed before; so a remote store in a folder that is not there is away, not empty.

    Returns:
        {stage: "current", "cached" or "pulled"} without those that have to be run.

    Raises:
        StoreError: the remote store could not be read.
    """
    options = [option for option, wanted in (("--pull", pull), ("--pushed", pushed)) if wanted]
    return json.loads(_child("restore", *options, *stages))


def push() -> dict[str, int]:
    """Send everything that a clone at any commit of this branch needs, and what the run cache knows of other states.

    Returns:
        {"files": how many were sent, "entries": how many the run cache has, "commits": how many have results, "lost":
        how many files are neither here nor there}

    Raises:
        StoreError: the remote store could not be written.
    """
    # DVC's site cache may believe that the remote store has what a push that was killed did not send.
    with tempfile.TemporaryDirectory() as own:
        return json.loads(_child("push", DVC_SITE_CACHE_DIR=own))


def _child(*arguments: str, **variables: str) -> str:
    command = (sys.executable, "-m", "regbench.runner.store", *arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | variables)
    if done.returncode:
        raise StoreError("the cache or the remote store can't be used, as said above")
    return done.stdout


# In the process of its own


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
            # A fresh one each time: an attempt that failed leaves the new inputs beside the old outputs in a stage.
            stage = stages[name]
            if not lacking.isdisjoint(dep.fs_path for dep in stage.deps):
                pass  # what lies in the place of an input that was not found is of another state
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
        # A web server can't list a run cache; what dvc.lock names is found there all the same.
        with contextlib.suppress(RunCacheNotSupported):
            repo.stage_cache.pull(None)
        look(pull=True)
    # The outputs that dvc.lock names may be another machine's, and nowhere to be had.
    if len(found) < len(names):
        look(own=True)
    if pushed:
        place = repo.cloud.get_remote_odb()
        place.fs.ls(place.path)
    # All at once: `dvc repro` writes dvc.lock anew for each stage, which takes hours for a thousand.
    if restored:
        restored[0].dvcfile.dump_stages(restored, update_pipeline=False)
    return found


def is_restored(stage: "PipelineStage", pull: bool = False, own: bool = False) -> bool:
    """Bring a stage's outputs here from DVC's cache; whether they are here now.

    Args:
        stage: its inputs are here. Where the attempt fails, it is not fit for another one.
        pull: look into the remote store for what the cache lacks.
        own: any outputs that were made here of its inputs will do, whatever dvc.lock names.
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
    # The files first: an entry of the run cache without its files would be found before a whole one.
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
    """The MD5s of outputs that DVC keeps, in a dvc.lock or in an entry of the run cache."""
    try:
        noted = yaml.load(data, Loader=LOADER)
        stages = noted.get("stages", {"": noted})
        for name, stage in stages.items():
            if name != "report":  # its outputs are in Git
                yield from (output["md5"] for output in stage.get("outs", ()))
    except (yaml.YAMLError, TypeError, KeyError, AttributeError):
        return  # a damaged one names nothing


def main() -> None:
    sys.excepthook = lambda kind, error, _: print(f"{kind.__name__}: {error}", file=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the runner says that it was interrupted
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=("restore", "push"))
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--pull", action="store_true")
    parser.add_argument("--pushed", action="store_true")
    arguments = parser.parse_intermixed_args()
    from dvc.repo import Repo

    # It says of each stage that it is cached.
    logging.getLogger("dvc").setLevel(logging.WARNING)
    with Repo() as repo, repo.lock:
        if arguments.action == "push":
            result = _push(repo)
        else:
            result = _restore(repo, arguments.stages, arguments.pull, arguments.pushed)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
