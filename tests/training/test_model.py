"""The model as XLA compiles it."""

import keras
import numpy as np
import pytest

from regbench.training import model


@pytest.mark.slow
def test_validation_is_not_compiled(plan_of, tmp_path):
    """With `train.jit` only training steps are compiled. Validation gives the same bits as without `train.jit`."""
    rng, logs = np.random.default_rng(0), []
    images, labels = rng.integers(0, 256, (6, 32, 32, 3)).astype(np.uint8), np.arange(6)
    for jit in (False, True):
        chosen, _ = plan_of("l2-0", tmp_path, **{"model.width": 0.35, "train.jit": jit})
        keras.utils.set_random_seed(0)
        trained = model.build(chosen, (32, 32, 3), 10)
        model.compile(trained, chosen["train"], 10)
        logs.append(trained.test_on_batch(images, labels))
        assert trained.jit_compile is jit and trained.get_layer("mobilenet_v2").get_layer("stem").xla is jit
    assert logs[0] == logs[1]
