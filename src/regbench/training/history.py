"""What is recorded of a training: for each epoch a row of history, a printed line and a row of the log."""

import time

import keras
import numpy as np

from regbench import live, networks, regularizers
from regbench.training import optimizer
from regbench.training.batch_norm import PopulationStatistics
from regbench.training.checkpoint import Checkpoint
from regbench.training.model import reg_loss

COLUMNS = (
    "epoch",
    "loss",
    "cross_entropy",
    "reg_loss",
    "reg_loss_backbone",
    "reg_loss_head",
    "norm_backbone",
    "norm_head",
    "accuracy",
    "val_loss",
    "val_cross_entropy",
    "val_accuracy",
    "val_cross_entropy_moving",
    "val_accuracy_moving",
)
"""The last two are measured with the moving averages of training, only if `train.moving_averages` is true."""

SAVE_SECONDS = 600
"""After so many seconds since the last save, the state is saved within an epoch."""

LOOK_STEPS = 10
"""The loss is checked once in so many steps: on a GPU, each check waits for the step to end. The number is that of the
steps in one compiled call (`model.STEPS_A_CALL`)."""


def backbone_and_head(model: keras.Model) -> dict[str, float]:
    """Reg loss and norm of the backbone (all kernels but the head's) and of the head; the norm is √Σw² of kernels."""
    head = networks.head(model)
    backbone = [kernel for layer, kernel in networks.kernels(model) if layer is not head]

    def penalty(weights: list[keras.Variable]) -> float:
        return float(sum(weight.regularizer(weight) for weight in weights if weight.regularizer is not None))

    def norm(kernels: list[keras.Variable]) -> float:
        # Not NumPy's norm: BLAS sums in an order that depends on its threads.
        return float(np.sqrt(sum(np.square(kernel.numpy(), dtype=np.float64).sum() for kernel in kernels)))

    return {
        "reg_loss_backbone": penalty(backbone),
        "reg_loss_head": penalty(head.weights),
        "norm_backbone": norm(backbone),
        "norm_head": norm([head.kernel]),
    }


def best(history: list[dict]) -> int:
    """The index of the row with the lowest validation cross-entropy; the first one of equal rows."""
    return int(np.argmin([np.nan_to_num(row["val_cross_entropy"], nan=np.inf) for row in history]))


class Recorder(keras.callbacks.Callback):
    """Adds a row of history after each epoch, prints it as a line, and saves the state to resume from.

    A loss that is not finite ends training: the last row of history is then that epoch's and has only its loss, and
    `diverged` is true.

    Args:
        plan: of the run.
        history: the rows so far; new ones are appended.
        images: number of images per epoch.
        checkpoint: where the state is saved.
        statistics: of batch normalization; recomputed before each validation.
    """

    def __init__(
        self, plan: dict, history: list[dict], images: int, checkpoint: Checkpoint, statistics: PopulationStatistics
    ):
        super().__init__()
        self.run, self.epochs, self.batch_size = plan["run"], plan["train"].epochs, plan["train"].batch_size
        self.history, self.images, self.checkpoint, self.statistics = history, images, checkpoint, statistics
        self.first_step, self.diverged = 0, False
        self.log = live.Log(self.run, history)
        self.stopping = regularizers.acting(plan["regularizer"], "stops")

    @property
    def stopped(self) -> bool:
        """Whether the history so far ends training, by a regularizer that `stops`."""
        return any(stops(self.history, strength) for stops, strength in self.stopping)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.first_step:
            self.checkpoint.restore_metrics()
        else:
            self.statistics.resume_moving()
        self.epoch = epoch
        self.started = self.saved = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now, step = time.perf_counter(), self.first_step + batch + 1
        if step % LOOK_STEPS == 0 and not np.isfinite(logs["loss"]):
            self._diverge(logs["loss"])
        elif now - self.saved > SAVE_SECONDS and batch + 1 < self.params["steps"]:
            self.checkpoint.save(self.history, step)
            self.saved = now

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self.started
        if not self.diverged:
            optimizer.of(self.model).swap_averages()
            self.with_moving = self.statistics.read_moving()
            self.statistics.refresh(self.epoch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.diverged:
            return
        row = {key: float(logs[key]) for key in COLUMNS if key in logs}
        row |= {"epoch": epoch + 1, "reg_loss": reg_loss(self.model)}
        if not np.isfinite(row["loss"] + row["reg_loss"]):
            self._diverge(row["loss"] + row["reg_loss"])
            return
        row |= backbone_and_head(self.model) | self.with_moving
        self.history.append({key: row[key] for key in COLUMNS if key in row})
        self._say(row, time.perf_counter() - self.started)
        self.first_step = 0
        if self.stopping and best(self.history) == len(self.history) - 1:
            self.checkpoint.keep()
        optimizer.of(self.model).swap_averages()
        self.checkpoint.save(self.history)

    def _say(self, row: dict, whole_seconds: float) -> None:
        rate = (self.images - self.first_step * self.batch_size) / self.seconds
        left = (self.epochs - row["epoch"]) * whole_seconds
        measures = {name: row[name] for name in live.MEASURES}
        print(
            live.Epoch(self.run, row["epoch"], self.epochs, **measures, images_per_second=rate, left=left), flush=True
        )
        seconds = {"seconds": round(self.seconds, 3), "images_per_second": round(rate, 1)}
        self.log.add({"epoch": row["epoch"]} | seconds | measures)
        if row["epoch"] == self.epochs or self.stopped:
            self.log.close()

    def _diverge(self, loss: float) -> None:
        self.diverged = self.model.stop_training = True
        self.history.append({"epoch": self.epoch + 1, "loss": float(loss)})
        print(live.diverged(self.run, float(loss), self.epoch + 1), flush=True)
        self.log.add({"epoch": self.epoch + 1})
        self.log.close()
