"""Models with a line under `reg:`, as a training makes them."""

import keras
import pytest
import residual  # noqa: F401  (a network that is found by its name)
import scratch

from regbench import catalogue, params
from regbench.training import model


@pytest.fixture(scope="module")
def built():
    """A function that builds the compiled model of a line, {kind: strength}, always with the same initial weights."""

    def build(line, network="residual", image_shape=(32, 32, 3), batch_norm=True, **train):
        terms = [params.Term(kind, strength, catalogue.kinds()[kind].scope) for kind, strength in line.items()]
        chosen = scratch.tiny_params("images")
        options = params.Train.model_validate(chosen["train"] | {"learning_rate": 0.1, "warmup_epochs": 0} | train)
        plan = {
            "name": "line",
            "seed": 0,
            "regularizer": params.Regularizer("line", tuple(terms)),
            "image_size": 32,
            "model": params.Model.model_validate(chosen["model"] | {"network": network, "batch_norm": batch_norm}),
            "train": options,
            "weights_md5": None,
        }
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("float32" if options.precision == "float32" else f"mixed_{options.precision}")
        try:
            trained = model.build(plan, image_shape, 10)
            model.compile(trained, options, steps=10)
            trained.run_eagerly = True  # in a few steps, tracing would take most of the time
        finally:
            keras.config.set_dtype_policy("float32")
        return trained

    return build


@pytest.fixture(scope="module")
def batch():
    """16 images, uint8 [16, 32, 32, 3], and their labels [16]."""
    images, labels = scratch.read_sample()
    return images[::25], labels[::25]
