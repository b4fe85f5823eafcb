"""Points to try in a grid that is too large for steps along each axis: Optuna's TPE proposes them.

TPE is the tree-structured Parzen estimator (J. Bergstra et al., 2011). Optuna is an extra of this package, `search`.
"""

import importlib.util
from collections.abc import Callable, Iterator, Sequence

from regbench.errors import UserError

TRIALS = 30
"""Default number of points."""

BATCH = 4
"""Points that are proposed at once and trained in parallel."""

RANDOM = 10
"""Points at the beginning that are drawn at random; Optuna's default."""

PATIENCE = 100
"""After this many proposals in a row without a new point, the search ends."""


def check() -> None:
    """Fail unless Optuna is installed.

    Raises:
        UserError: it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise UserError(
            "Optuna chooses the strengths here, and it is not installed: `.venv/bin/pip install -e '.[search]'`"
        )


def batches(
    shape: Sequence[int], trials: int, value: Callable[[tuple[int, ...]], float]
) -> Iterator[list[tuple[int, ...]]]:
    """Propose points, a batch at a time. The same values always give the same batches.

    Args:
        shape: how many places each axis has.
        trials: how many different points at most.
        value: how good a point is. It is called for the points of a batch when the next batch is requested.

    Yields:
        points that were not proposed before
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=0, n_startup_trials=RANDOM)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    places = {str(axis): optuna.distributions.IntDistribution(0, size - 1) for axis, size in enumerate(shape)}
    known: set[tuple[int, ...]] = set()
    while True:
        asked: dict[tuple[int, ...], list[optuna.Trial]] = {}
        for _ in range(PATIENCE):
            if len(asked) == min(BATCH, trials - len(known)):
                break
            trial = study.ask(places)
            point = tuple(trial.params[name] for name in places)
            if point in known:
                study.tell(trial, value(point))
            else:
                asked.setdefault(point, []).append(trial)
        if not asked:
            return
        yield [*asked]
        for point, same in asked.items():
            for trial in same:
                study.tell(trial, value(point))
        known |= asked.keys()
