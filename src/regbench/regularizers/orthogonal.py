"""strength · ‖WᵀW − I‖²_F, in the loss: soft orthogonality.

It keeps the filters of a layer apart and of length 1. W is the kernel as a matrix, [inputs of a filter, filters]. With
more filters than inputs the columns can't all be orthogonal; then the rows are kept apart, ‖WWᵀ − I‖²_F. A depthwise
kernel [h, w, C, 1] has one filter for each channel, so WᵀW is diagonal and only lengths are pulled to 1:
Σ (‖w_c‖² − 1)². A bias is not a matrix and adds nothing. It costs one matrix product per layer and step.

Source: N. Bansal et al., "Can We Gain More from Orthogonality Regularizations in Training Deep Networks?", 2018,
arXiv 1810.09102.
Usual strengths: 1e-4 to 1e-2.
PyTorch: `loss + strength * ((W.T @ W - I) ** 2).sum()` for each kernel.
"""

import tensorflow as tf

SCOPE = "backbone"


def penalty(weight: tf.Tensor) -> tf.Tensor:
    """‖WᵀW − I‖²_F, or ‖WWᵀ − I‖²_F where WWᵀ is the smaller matrix."""
    if weight.shape.rank < 2:
        return tf.zeros([], weight.dtype)
    if weight.shape.rank == 4 and weight.shape[-1] == 1:
        norms = tf.reduce_sum(tf.square(weight), axis=(0, 1, 3))
        return 2.0 * tf.nn.l2_loss(norms - 1.0)
    matrix = tf.reshape(weight, [-1, weight.shape[-1]])
    inputs, filters = matrix.shape
    gram = tf.matmul(matrix, matrix, transpose_a=inputs >= filters, transpose_b=inputs < filters)
    return 2.0 * tf.nn.l2_loss(gram - tf.eye(min(inputs, filters), dtype=gram.dtype))
