"""The state of a run on disk, to resume from."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from regbench import regularizers
from regbench.data import arrays

FOLDER = Path(".regbench/checkpoints")


def folder_of(plan: dict, *splits: arrays.Split) -> Path:
    """The folder of a run's checkpoints. Its name has a hash of everything that determines the run's result.

    So after a change, a run never resumes from an old state.
    """
    described = repr(sorted(plan.items())) + "".join(json.dumps(split.info["sha256"]) for split in splits)
    return FOLDER / f"{plan['run']}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


class Checkpoint:
    """The state of a run: weights, optimizer, history, the best weights if kept, and within an epoch its metrics.

    `others` are further variables of the state, beside those of model and optimizer.

    The last two states are kept, each in a file `EPOCHS-STEPS.npz`: whole epochs, and steps since then. If the last
    state is damaged, the run continues from the one before.
    """

    def __init__(self, model: keras.Model, folder: Path, others: Sequence[tf.Variable] = ()):
        self.model, self.folder, self.metrics, self.best = model, folder, [], []
        weights = model.trainable_variables
        model.optimizer.build(weights)
        self.variables = [*model.variables, *model.optimizer.variables, *regularizers.memories(weights), *others]

    def save(self, history: list[dict], step: int = 0) -> None:
        """Write the state after `step` steps of an epoch; 0: after a whole epoch."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays = {f"{index:04d}": variable.numpy() for index, variable in enumerate(self.variables)}
        arrays |= {f"best{index:04d}": value for index, value in enumerate(self.best)}
        if step:
            # One flat array: each variable of a metric is a single number.
            arrays["metrics"] = np.array([variable.numpy() for variable in self.model.metrics_variables], np.float64)
        beside = self.folder / "partial.npz"
        np.savez(beside, state=json.dumps({"history": history, "step": step}), **arrays)
        beside.replace(self.folder / f"{len(history):06d}-{step:09d}.npz")
        for old in self._saved()[2:]:
            old.unlink()

    def keep(self) -> None:
        """Keep the model's current weights as the best so far; they become part of the state."""
        self.best = [variable.numpy() for variable in self.model.variables]

    def take_best(self) -> None:
        """Give the model the weights that `keep` kept last."""
        for variable, value in zip(self.model.variables, self.best, strict=True):
            variable.assign(value)

    def _saved(self) -> list[Path]:
        """The files of states, the latest first."""
        return sorted(self.folder.glob("*-*.npz"), reverse=True)

    def restore(self) -> tuple[list[dict], int]:
        """Load the latest undamaged state, if there is one.

        Returns:
            (history so far, how many steps of the next epoch are done)
        """
        for path in self._saved():
            try:
                with np.load(path, allow_pickle=False) as file:
                    loaded = dict(file)
                state = json.loads(str(loaded["state"]))
                values = [loaded[f"{index:04d}"] for index in range(len(self.variables))]
                best = [loaded[name] for name in sorted(loaded) if name.startswith("best")]
            except Exception as error:  # zipfile and NumPy raise many kinds on a damaged file
                print(f"{path} is damaged ({error}); continuing without it", flush=True)
                path.unlink()
                continue
            for variable, value in zip(self.variables, values, strict=True):
                variable.assign(value)
            self.metrics, self.best = loaded.get("metrics", []), best
            within = f" and {state['step']} steps" if state["step"] else ""
            print(f"resuming after epoch {len(state['history'])}{within}", flush=True)
            return state["history"], state["step"]
        return [], 0

    def restore_metrics(self) -> None:
        """Restore the metrics of the epoch that was interrupted."""
        for variable, value in zip(self.model.metrics_variables, self.metrics, strict=True):
            variable.assign(value)

    def remove(self) -> None:
        """Delete the state: the run has ended."""
        shutil.rmtree(self.folder, ignore_errors=True)
