"""How long a step takes with each kind of regularizer; prints JSON. `benchmarks/bench.py kinds` calls it.

python benchmarks/kinds.py PREPARED ROUNDS

All models train in one process, in turns of `STEPS` steps. A turn without a regularizer comes before each turn of a
kind, so that a ratio compares two turns in a row. "none" against itself shows the noise.
"""

import json
import statistics
import sys
from pathlib import Path

import measure

STRENGTHS = {
    "none": 0,
    "activity_l2": 0.01,
    "cutmix": 1,
    "dropout": 0.2,
    "early_stopping": 5,
    "ema": 0.99,
    "gaussian_noise": 0.1,
    "gradient_clip": 1,
    "group_lasso": 1e-4,
    "l1": 1e-5,
    "l2": 1e-4,
    "label_smoothing": 0.1,
    "max_norm": 3,
    "mixup": 0.2,
    "orthogonal": 1e-3,
    "proximal_l1": 1e-5,
    "rand_augment": 5,
    "random_crop": 4,
    "random_erasing": 0.25,
    "sam": 0.05,
    "spatial_dropout": 0.1,
    "spectral_norm": 0.01,
    "stochastic_depth": 0.2,
    "weight_decay": 1e-3,
}
"""{kind: a strength that its file calls usual}."""

SIZE, BATCH, STEPS, FIRST = 32, 64, 20, 4
"""Pixels, images in a step, steps in a turn, and how many steps at the start of a turn do not count."""


def models(kinds):
    """{kind: compiled model} of the committed network and training."""
    import keras

    from regbench.params import Regularizer, Term
    from regbench.training import model

    plan, built = measure.plan_of(SIZE, BATCH, BATCH * STEPS, 1), {}
    for name, kind in kinds.items():
        terms = (Term(name, float(STRENGTHS[name]), kind.scope),) if kind else ()
        keras.utils.set_random_seed(0)
        built[name] = model.build(plan | {"name": name, "regularizer": Regularizer(name, terms)}, (32, 32, 3), 10)
        model.compile(built[name], plan["train"], STEPS)
    return built


def main(prepared, rounds):
    from regbench import catalogue, runtime

    runtime.start()
    import keras

    from regbench.data import arrays

    split = arrays.load("train", Path(prepared))
    built = models({"none": None} | catalogue.kinds())
    times = measure.timed(keras.callbacks.Callback)

    def turn(name, number):
        """Train one turn; returns the median milliseconds of a step."""
        batches = arrays.training_batches(split, batch_size=BATCH, seed=0, flip=True, epoch=number)
        built[name].fit(batches.take(STEPS), verbose=0, shuffle=False, callbacks=[callback := times()])
        return 1000 * measure.median_step(callback.steps[FIRST:])

    for name in built:
        turn(name, 0)  # builds the graph
    ratios, plain = {name: [] for name in built}, []
    for number in range(rounds):
        for name in built:
            plain.append(turn("none", number))
            ratios[name].append(turn(name, number) / plain[-1])
    of = {"image_size": SIZE, "batch_size": BATCH, "none_step_ms": round(statistics.median(plain), 2)}
    measured = {name: {"strength": STRENGTHS[name], "step": measure.spread(ratios[name])} for name in built}
    print(json.dumps(of | measured))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
