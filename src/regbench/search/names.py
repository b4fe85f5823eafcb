"""One run under two names: `l2_1e_4-0`, as a search trains it, and `l2-0` with `reg.l2` at 1e-4, as everybody does.

What a run gives does not depend on its name, but DVC knows a stage by its command and paths. So results under one of
the names are noted in DVC's run cache under the other one, too. What was trained before is then not trained by the
search, and what the search has trained is not trained by `dvc exp run -S reg.l2=1e-4`.
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
    """Let both names of each run know what is known of one of them.

    The working directory's params.yaml has both names under `reg`, and its plans are written.

    Args:
        line: whose points.
        points, seeds: the runs.
        here: stages under the search's names, like `train@l2_1e_4-0`, whose outputs lie here.

    Returns:
        runs that were known under the line's own name only; their outputs lie here now, under the search's name
    """
    from dvc.dvcfile import load_file
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.WARNING)  # it says of each stage that it is cached
    taken = []
    with Repo() as repo, repo.lock:
        # Gives a fresh stage each time: a stage keeps the hashes of what it has seen.
        stages = load_file(repo, "dvc.yaml").stages
        for point, seed in itertools.product(points, seeds):
            theirs, own = f"{line.name(point)}-{seed}", f"{line.key}-{seed}"
            _write_plans(theirs, own, line.key)
            shutil.rmtree(RUNS / own, ignore_errors=True)
            # Without the one stage there is no input to the next one.
            shared = all(_share(stages, name, theirs, own, f"{name}@{theirs}" in here) for name in STAGES)
            if shared and f"evaluate@{theirs}" not in here:
                taken.append((point, seed))
            shutil.rmtree(RUNS / own, ignore_errors=True)
    return taken


def _share(stages: Mapping[str, "PipelineStage"], name: str, theirs: str, own: str, is_here: bool) -> bool:
    """Share what one stage of a run has written; whether there was something."""
    source, target = (theirs, own) if is_here else (own, theirs)
    # Where dvc.lock names outputs that are nowhere to be had, others that were made of the same inputs will do.
    if not is_here and not any(store.is_restored(stages[f"{name}@{own}"], own=mine) for mine in (False, True)):
        return False
    for output in STAGES[name]:
        _copy(RUNS / source / output, RUNS / target / output)
    stages[f"{name}@{target}"].save()
    return True


def _write_plans(theirs: str, own: str, name: str) -> None:
    """Write the plans of a run under the line's own name: those under the search's name, but for names."""
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
