"""Train one model: build, fit, resume, save."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from regbench import files, runtime
from regbench.data import arrays
from regbench.training import checkpoint, history, model, optimizer, save
from regbench.training.batch_norm import PopulationStatistics


def train(plan: dict, prepared: Path = Path("prepared"), out: Path | None = None) -> None:
    """Train one model; write `model.keras` and `history.csv` into `out`.

    If the loss diverges, training ends: the last row of history is that epoch's and has only its loss, and all
    trainable weights become NaN.

    Args:
        plan: of the run, as `regbench.plan.read` gives it.
        prepared: folder that `data.prepare` wrote.
        out: folder of the run, `runs/KEY` by default.
    """
    out = Path(out or f"runs/{plan['run']}")
    training, validation = arrays.load("train", prepared), arrays.load("validation", prepared)
    options, seed = plan["train"], plan["seed"]
    steps = -(-len(training) // options.batch_size)

    keras.utils.set_random_seed(seed)
    # Layers keep the policy under which they are made, also in the saved model. Variables are always float32.
    keras.config.set_dtype_policy("float32" if options.precision == "float32" else f"mixed_{options.precision}")
    with runtime.strategy().scope():
        trained = model.build(plan, training.images.shape[1:], len(training.info["classes"]))
        model.compile(trained, options, steps)
        statistics = PopulationStatistics(trained, training, validation, plan)
        state = checkpoint.Checkpoint(trained, checkpoint.folder_of(plan, training, validation), statistics.moving)
    rows, first_step = state.restore()
    recorder = history.Recorder(plan, rows, len(training), state, statistics)
    validating = arrays.evaluation_batches(validation)
    if first_step:  # Keras makes the metrics on first use; without them there is nothing to restore
        trained.test_on_batch(*next(iter(validating)))
    # One `fit` per epoch: each epoch has its own order, and a resumed one lacks the steps that are already done.
    while len(rows) < options.epochs and not recorder.stopped:
        epoch, recorder.first_step = len(rows), first_step
        trained.fit(
            arrays.training_batches(
                training,
                batch_size=options.batch_size,
                seed=seed,
                flip=options.flip,
                epoch=epoch,
                first_step=first_step,
            ),
            initial_epoch=epoch,
            epochs=epoch + 1,
            steps_per_epoch=steps - first_step,
            validation_data=validating,
            callbacks=[recorder],
            shuffle=False,
            verbose=0,
        )
        first_step = 0
        if recorder.diverged:
            # So that everyone who loads the model sees that it diverged, and so that the file is always the same.
            for variable in trained.trainable_variables:
                variable.assign(tf.fill(variable.shape, np.float32("nan")))
            break
    if not recorder.diverged:
        optimizer.of(trained).swap_averages()
        if recorder.stopping:
            state.take_best()
            print(f"{plan['run']} keeps the weights of epoch {history.best(rows) + 1}", flush=True)

    out.mkdir(parents=True, exist_ok=True)
    save.save(trained.plain, out / "model.keras", save.metadata(trained, plan, training.info["classes"]))
    files.write_csv(
        out / "history.csv", history.COLUMNS, ([row.get(key, "") for key in history.COLUMNS] for row in rows)
    )
    state.remove()
