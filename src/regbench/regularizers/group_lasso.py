"""strength · Σ over filters of √(number of weights) · ‖filter‖₂, in the loss: the group Lasso.

It is l1 for whole filters: it pulls all weights of a filter towards zero together, at a speed that does not depend on
the filter's length. A filter is all weights of one output: a column of the kernel as a matrix, or a channel's weights
of a depthwise kernel. A bias is not a filter and adds nothing. As with l1, the steps of SGD end near zero, not at it.
Look at "near zero" in report.md.

Source: M. Yuan, Y. Lin, "Model Selection and Estimation in Regression with Grouped Variables", 2006; for networks:
W. Wen et al., "Learning Structured Sparsity in Deep Neural Networks", 2016, arXiv 1608.03665.
Usual strengths: 1e-6 to 1e-4.
PyTorch: `loss + strength * sum(w[0].numel() ** 0.5 * w.flatten(1).norm(dim=1).sum() for w in kernels)`.
"""

import tensorflow as tf

from regbench import regularizers

SCOPE = "backbone"


def penalty(weight: tf.Tensor) -> tf.Tensor:
    """Σ √size · ‖filter‖₂; the gradient at a filter of zeros is 0."""
    if weight.shape.rank < 2:
        return tf.zeros([], weight.dtype)
    squares = tf.reduce_sum(tf.square(weight), axis=regularizers.filter_axes(weight))
    # √ has an infinite gradient at 0, which would turn into NaN. There, take √1 instead; the outer `where` drops it.
    norms = tf.where(squares > 0, tf.sqrt(tf.where(squares > 0, squares, 1.0)), 0.0)
    size = weight.shape.num_elements() / squares.shape.num_elements()
    return size**0.5 * tf.reduce_sum(norms)
