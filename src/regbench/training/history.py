"""What is recorded of a training: a row of history an epoch, and the seconds it took in a log beside the outputs."""

import time
from pathlib import Path

import keras
import numpy as np

from regbench import networks
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
)
LOG = Path(".regbench/log")
SAVE_SECONDS = 600
"""How long an epoch may take before the state is saved in the midst of it."""

LOOK_STEPS = 10
"""Every how many steps the loss is looked at: on a GPU each look waits for the step to end."""


def backbone_and_head(model: keras.Model) -> dict[str, float]:
    """Reg loss and norm of the convolutions and of the Dense head; the norm is √Σw² of the kernels."""
    *backbone, (head, head_kernel) = networks.kernels(model)

    def norm(kernels: list[keras.Variable]) -> float:
        # Not NumPy's norm: BLAS sums in an order that depends on its threads.
        return float(np.sqrt(sum(np.square(kernel.numpy(), dtype=np.float64).sum() for kernel in kernels)))

    return {
        "reg_loss_backbone": float(sum(loss for layer, _ in backbone for loss in layer.losses)),
        "reg_loss_head": float(sum(head.losses)),
        "norm_backbone": norm([kernel for _, kernel in backbone]),
        "norm_head": norm([head_kernel]),
    }


class Recorder(keras.callbacks.Callback):
    """Writes a row of history an epoch, prints it as a line, and saves the state to resume from.

    A loss that is not finite ends training: the last row of history is then of that epoch, with nothing but its loss,
    and `diverged` is true.

    Args:
        plan: of the run.
        history: the rows so far; new ones are appended.
        images: how many an epoch has.
        checkpoint: where the state is saved.
        statistics: of batch normalization, computed anew before each validation.
    """

    def __init__(
        self, plan: dict, history: list[dict], images: int, checkpoint: Checkpoint, statistics: PopulationStatistics
    ):
        super().__init__()
        self.run, self.epochs, self.batch_size = plan["run"], plan["train"].epochs, plan["train"].batch_size
        self.history, self.images, self.checkpoint, self.statistics = history, images, checkpoint, statistics
        self.first_step, self.diverged = 0, False

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        if self.first_step:
            self.checkpoint.restore_metrics()
        self.epoch = epoch
        self.started = self.saved = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now, step = time.perf_counter(), self.first_step + batch + 1
        if step % LOOK_STEPS == 0 and not np.isfinite(logs["loss"]):
            self._diverge(logs["loss"])
        elif now - self.saved > SAVE_SECONDS:
            self.checkpoint.save(self.history, step)
            self.saved = now

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self.started
        if not self.diverged:
            self.statistics.refresh(self.epoch)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if self.diverged:
            return
        row = {key: float(logs[key]) for key in COLUMNS if key in logs}
        row |= {"epoch": epoch + 1, "reg_loss": reg_loss(self.model)}
        if not np.isfinite(row["loss"] + row["reg_loss"]):
            self._diverge(row["loss"] + row["reg_loss"])
            return
        row |= backbone_and_head(self.model)
        self.history.append({key: row[key] for key in COLUMNS})
        self._say(row, time.perf_counter() - self.started)
        self.first_step = 0
        self.checkpoint.save(self.history)

    def _say(self, row: dict, whole_seconds: float) -> None:
        rate = (self.images - self.first_step * self.batch_size) / self.seconds
        left = (self.epochs - row["epoch"]) * whole_seconds
        print(
            f"{self.run} epoch {row['epoch']}/{self.epochs}: cross-entropy {row['cross_entropy']:.4f}, "
            f"reg loss {row['reg_loss']:.4f}, accuracy {row['accuracy']:.1%}; "
            f"validation cross-entropy {row['val_cross_entropy']:.4f}, accuracy {row['val_accuracy']:.1%}; "
            f"{rate:,.0f} images/s, {left // 60:.0f}:{left % 60:02.0f} left",
            flush=True,
        )
        LOG.mkdir(parents=True, exist_ok=True)
        log = LOG / f"{self.run}.csv"
        if not log.exists() or row["epoch"] == 1:
            log.write_text("epoch,seconds,images_per_second\n")
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{row['epoch']},{self.seconds:.3f},{rate:.1f}\n")

    def _diverge(self, loss: float) -> None:
        self.diverged = self.model.stop_training = True
        self.history.append({"epoch": self.epoch + 1, "loss": float(loss)})
        print(
            f"{self.run} diverged: its loss was {float(loss)} in epoch {self.epoch + 1}; "
            "lower train.learning_rate or the strength of the regularizer",
            flush=True,
        )
