"""One run under two names: a search trains `l2_1e_4-0`; outside a search it is `l2-0` with `reg.l2` set to 1e-4.

The results of a run do not depend on its name, but DVC identifies a stage by its command and paths. So results under
one name are also recorded in DVC's run cache under the other name. Then the search does not repeat earlier trainings,
and `dvc exp run -S reg.l2=1e-4` does not repeat trainings of the search.
"""

import itertools
import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regbench import files
from regbench.plan import FOLDER as PLANS
from regbench.runner import store
from regbench.search.line import Line
from regbench.search.planner import Point

if TYPE_CHECKING:
    from dvc.stage import PipelineStage

RUNS = Path("runs")
STAGES = {"train": ("model.keras", "history.csv"), "evaluate": ("evaluation",)}
"""{stage: what it writes}"""


def share(line: Line, points: Sequence[Point], seeds: Sequence[int], here: Collection[str]) -> list[tuple[Point, int]]:
    """Make the results of each run that are known under one of its names known under both.

    Before the call, params.yaml in the working directory has both names under `reg`, and the plans are written.

    Args:
        line: the line that the points belong to.
        points, seeds: the runs: each point with each seed.
        here: stages under the search's names, like `train@l2_1e_4-0`, whose outputs are in the working directory.

    Returns:
        runs known only under the line's own name before; their outputs are now here, under the search's name
    """
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it logs for each stage that it is cached
    taken = []
    with Repo() as repo, repo.lock:
        # Each look-up gives a new stage object. An object that was used before would keep old hashes.
        stages = load_file(repo, "dvc.yaml").stages
        for point, seed in itertools.product(points, seeds):
            theirs, own = f"{line.name(point)}-{seed}", f"{line.key}-{seed}"
            _write_plans(theirs, own, line.key)
            shutil.rmtree(RUNS / own, ignore_errors=True)
            # `all` stops at a stage without results: the next stage would have no input.
            shared = all(_share(stages, name, theirs, own, f"{name}@{theirs}" in here) for name in STAGES)
            if shared and f"evaluate@{theirs}" not in here:
                taken.append((point, seed))
            shutil.rmtree(RUNS / own, ignore_errors=True)
    return taken


def _share(stages: Mapping[str, "PipelineStage"], name: str, theirs: str, own: str, is_here: bool) -> bool:
    """Share the outputs of one stage of a run. Return whether there were any."""
    source, target = (theirs, own) if is_here else (own, theirs)
    # If the outputs that dvc.lock names are not in the cache, others made from the same inputs are good enough.
    if not is_here and not any(store.is_restored(stages[f"{name}@{own}"], own=mine) for mine in (False, True)):
        return False
    for output in STAGES[name]:
        _copy(RUNS / source / output, RUNS / target / output)
    stages[f"{name}@{target}"].save()
    return True


def _write_plans(theirs: str, own: str, name: str) -> None:
    """Write the plans of a run under the line's own name: copies of those of the search, with names replaced."""
    for stage in STAGES:
        content = json.loads((PLANS / theirs / f"{stage}.json").read_text(encoding="utf-8"))
        files.write_json(PLANS / own / f"{stage}.json", content | {"run": own, "name": name})


def _copy(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        target.unlink(missing_ok=True)
        shutil.copy2(source, target)
