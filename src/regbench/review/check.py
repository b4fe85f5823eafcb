"""Do the committed results belong to the committed params and code? Needs Git only: no cache, no remote, no dvc.

The plans are computed again from params.yaml and the code, and compared with the plans that dvc.lock records.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from regbench import params, plan
from regbench.errors import UserError
from regbench.files import json_text
from regbench.params import Params
from regbench.report import results, summary, tracked
from regbench.review import blocks, git, lockfile, parameters
from regbench.review.lockfile import Stage

STALE = "the committed results are not those of params.yaml and the code"
MEND = (
    "Run `make repro`, and commit params.yaml, dvc.lock, report.md, report.json, metrics/, plots/, README.md and docs/."
)
UNCOMMITTED = "not committed: "


def check() -> list[str]:
    """What is stale or not committed, one line each; empty if the committed results are current.

    Raises:
        UserError: params.yaml or dvc.lock can't be read, or this is not a Git repository.
    """
    git.require_commit()
    settings = params.load(parameters.PATH)
    plans = plan.compute(settings)
    lock = lockfile.read()
    stale = list(dict.fromkeys(_stale(settings, plans, lock)))
    if stale:
        stale += _suspects(plans)
    tables = _stale_tables()
    uncommitted = _uncommitted(plans, lock) + ([] if tables else blocks.uncommitted())
    return [*stale, *tables, *(UNCOMMITTED + path for path in uncommitted)]


def verify() -> None:
    """Print that the results are current, or raise a `UserError` that names what is not."""
    if found := check():
        raise UserError("\n  ".join([f"{STALE}:", *found]) + f"\n{way_out(found)}")
    print("The committed results are those of params.yaml and the code.")


def way_out(found: list[str]) -> str:
    """How to fix what `check` found."""
    return "Commit these files." if all(line.startswith(UNCOMMITTED) for line in found) else MEND


def _stale(settings: Params, plans: dict[str, dict], lock: dict[str, Stage]) -> Iterator[str]:
    stages = _stages(settings)
    planned = {(plan.FOLDER / name).as_posix(): _md5(json_text(content).encode()) for name, content in plans.items()}
    # Only these stages: dvc.lock keeps entries of stages that no longer exist.
    made = {path: md5 for name in stages if name in lock for path, md5 in lock[name].outs.items()}
    declared = lockfile.declared(settings)
    for name in stages:
        if name not in lock:
            yield f"{name}: has not run"
            continue
        stage = lock[name]
        if name in declared:
            if stage.cmd != declared[name].cmd:
                yield f"{name}: its command in dvc.yaml is not the one that it ran with"
            if (set(stage.deps), set(stage.outs)) != (declared[name].deps, declared[name].outs):
                yield f"{name}: its deps or outs in dvc.yaml are not those that it ran with"
        for path, md5 in stage.deps.items():
            if path in planned and md5 != planned[path]:
                yield f"{name}: its plan has changed since it ran ({path})"
            elif path in made and md5 != made[path]:
                yield f"{name}: ran on a different {path} from the one in dvc.lock"
    yield from _stale_files(lock)
    yield from _stale_report(settings, lock, made)


def _stages(settings: Params) -> list[str]:
    """The stages to check. `plan` is not among them: it runs after every edit anyway."""
    runs = [run.key for run in settings.runs]
    return ["prepare", *(f"{stage}@{run}" for run in runs for stage in ("train", "evaluate")), "report"]


def _stale_files(lock: dict[str, Stage]) -> Iterator[str]:
    """Messages about results in the workspace that are missing or differ from what the report stage wrote."""
    for path, md5 in lock["report"].outs.items() if "report" in lock else ():
        if not Path(path).is_file():
            yield f"report: {path} is missing"
        elif _md5(data := Path(path).read_bytes()) != md5:
            said = f"report: {path} differs from the one in dvc.lock: it was edited, or taken from another commit"
            yield _conflict(path, data) or said


def _conflict(path: str, data: bytes) -> str | None:
    """What the reader of a changed result file finds wrong with it, or None."""
    try:
        if Path(path) == results.PATH:
            results.parse(data, path)
        elif Path(path) == summary.SUMMARY:
            summary.parse(data, path)
        elif not path.endswith(".png"):
            tracked.text(data, path)
    except UserError as error:
        return str(error)
    return None


def _stale_report(settings: Params, lock: dict[str, Stage], made: dict[str, str | None]) -> Iterator[str]:
    """Messages about a report.json that was not made from the plan and the runs in dvc.lock."""
    if "report" not in lock or not results.PATH.exists():  # already reported
        return
    try:
        report = results.read()
    except UserError as error:
        yield str(error)
        return
    if report.plan != lock["report"].deps.get((plan.FOLDER / "report.json").as_posix()):
        yield f"report: {results.PATH} was made from a different plan from the one in dvc.lock"
    runs = [run.key for run in settings.runs]
    if [*report.runs] != runs:
        yield f"report: {results.PATH} was made of {', '.join(report.runs)}, not of {', '.join(runs)}"
    for run in report.runs:
        found = {"history.csv": report.runs[run].get("history.csv"), "evaluation": _folder_md5(report.runs[run])}
        for name, md5 in found.items():
            path = f"runs/{run}/{name}"
            if path in made and made[path] != md5:
                yield f"report: {results.PATH} was made of a different {path} from the one in dvc.lock"


def _stale_tables() -> list[str]:
    """Messages about blocks of README.md and docs/ that differ from the committed JSON."""
    try:
        return list(blocks.stale())
    except UserError as error:
        return [str(error)]


def _folder_md5(files: dict[str, str], folder: str = "evaluation/") -> str:
    """A folder's MD5 as DVC computes it: the MD5 of a JSON list of its files."""
    inside = {path.removeprefix(folder): md5 for path, md5 in files.items() if path.startswith(folder)}
    listed = [{"md5": inside[path], "relpath": path} for path in sorted(inside)]
    return _md5(json.dumps(listed, sort_keys=True).encode()) + ".dir"


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


# What Git knows


def _uncommitted(plans: dict[str, dict], lock: dict[str, Stage]) -> list[str]:
    """Results, params and code that differ from the last commit or are not in it."""
    written = lock["report"].outs if "report" in lock else ()
    found = git.uncommitted(
        dict.fromkeys([parameters.PATH, plan.COSTS, lockfile.LOCK, lockfile.PIPELINE, *map(Path, written)])
    )
    return found + [path for path in git.uncommitted(_code(plans)) if _fingerprint(path) != _fingerprint(path, "HEAD")]


def _suspects(plans: dict[str, dict]) -> list[str]:
    """One line that names the params and code changed since dvc.lock was committed; empty if there are none."""
    commit = git.last_commit_of(lockfile.LOCK)
    if commit is None:
        return []
    try:
        before = parameters.flat(git.blob(commit, parameters.PATH) or b"")
        changed = [*parameters.changes(before, parameters.flat(tracked.read(parameters.PATH)))]
    except UserError:  # params.yaml of that commit can't be read
        changed = [str(parameters.PATH)]
    changed += [
        path for path in git.changed_since(commit, _code(plans)) if _fingerprint(path) != _fingerprint(path, commit)
    ]
    return [f"changed since {lockfile.LOCK} was committed ({commit[:7]}): {', '.join(changed)}"] if changed else []


def _code(plans: dict[str, dict]) -> Iterable[str]:
    """The Python files that the plans cover and that exist."""
    return sorted({path for content in plans.values() for path in content["code"] if Path(path).is_file()})


def _fingerprint(path: str, revision: str | None = None) -> str | None:
    """A file's fingerprint in the workspace or in a commit; None if the commit lacks it or it is not valid Python."""
    data = git.blob(revision, path) if revision else Path(path).read_bytes()
    try:
        return None if data is None else plan.fingerprint(ast.parse(data))
    except (SyntaxError, ValueError):
        return None
