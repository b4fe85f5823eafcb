"""strength · Σ|w|, in the loss: the Lasso's penalty.

It pulls every weight towards zero at the same speed, whatever its size, so small ones end near zero. They do not reach
it: a step of SGD is learning rate × strength long and jumps over it (`proximal_l1` reaches it). Look at "near zero" in
report.md and at plots/pruning.png.

Source: R. Tibshirani, "Regression Shrinkage and Selection via the Lasso", 1996.
Usual strengths: 1e-6 to 1e-4; at the article's 1e-3, training breaks down with the default params.
Equals `keras.regularizers.L1(strength)`. PyTorch: `loss + strength * sum(w.abs().sum() for w in kernels)`.
"""

import tensorflow as tf

SCOPE = "backbone"


def penalty(weight: tf.Tensor) -> tf.Tensor:
    """Σ|w|."""
    return tf.reduce_sum(tf.abs(weight))
