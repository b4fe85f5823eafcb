"""From images to logits."""

from collections.abc import Callable
from multiprocessing.pool import ThreadPool

import keras
import numpy as np
import tensorflow as tf

from regbench import runtime
from regbench.data import EVALUATION_BATCH
from regbench.data.arrays import Split


def predictor(model: keras.Model) -> Callable[[Split], np.ndarray]:
    """A function from a split to the model's logits [N, K] of its images, with the weights at the time of the call.

    Up to `runtime.EVALUATED_AT_ONCE` batches are computed at once, each by one thread. So the logits have the same bits
    on any number of cores.
    """
    images = tf.TensorSpec((None, *model.input_shape[1:]), model.inputs[0].dtype)
    network = tf.function(lambda images: model(images, training=False), input_signature=[images])
    size = EVALUATION_BATCH // runtime.EVALUATED_AT_ONCE

    def predict(split: Split) -> np.ndarray:
        def batch(start: int) -> np.ndarray:
            return network(tf.cast(np.array(split.images[start : start + size]), images.dtype)).numpy()

        with ThreadPool(runtime.evaluation_threads()) as pool:
            return np.concatenate(pool.map(batch, range(0, len(split), size), chunksize=1))

    return predict
