"""strength · σ², in the loss, where σ is a kernel's largest singular value: spectral norm regularization.

It limits how much a layer can amplify a change of its input. The kernel is taken as a matrix W, [inputs of a filter,
filters]. A depthwise kernel [h, w, C, 1] has one filter for each channel, so σ is the length of the longest filter. A
bias is not a matrix and adds nothing. σ is exact at the start; then one step of power iteration follows each step of
SGD, so σ lags behind while weights change fast. It is exact in the evaluation.

Source: Y. Yoshida, T. Miyato, "Spectral Norm Regularization for Improving the Generalizability of Deep Learning", 2017,
arXiv 1705.10941; their λ is 2 · strength.
Usual strengths: 1e-3 to 1e-2.
PyTorch: `loss + strength * sum(torch.linalg.matrix_norm(w.flatten(1), ord=2) ** 2 for w in kernels)`, without
depthwise ones. Not `torch.nn.utils.spectral_norm`, which divides each kernel by σ.
"""

import tensorflow as tf

from regbench import regularizers

SCOPE = "backbone"


def penalty(weight: tf.Tensor, memory: tf.Tensor | None = None) -> tf.Tensor:
    """σ² = ‖W·v‖², where v is the remembered singular vector, or the exact one if `memory` is None."""
    if weight.shape.rank < 2:
        return tf.zeros([], weight.dtype)
    if _matrix(weight) is None:
        return tf.reduce_max(tf.reduce_sum(tf.square(weight), axis=regularizers.filter_axes(weight)))
    vector = remember(weight, None) if memory is None else memory
    return 2.0 * tf.nn.l2_loss(tf.linalg.matvec(_matrix(weight), tf.stop_gradient(vector)))


def remember(weight: tf.Tensor, memory: tf.Tensor | None) -> tf.Tensor | None:
    """One step of power iteration: WᵀW·v, scaled to length 1. Without a v: the exact one, an eigenvector of WᵀW.

    None for a bias and a depthwise kernel.
    """
    matrix = _matrix(weight)
    if matrix is None:
        return None
    if memory is None:
        return tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_a=True))[1][:, -1]
    vector = tf.linalg.matvec(matrix, tf.linalg.matvec(matrix, memory), transpose_a=True)
    length = tf.norm(vector)
    return tf.where(length > 0, tf.math.divide_no_nan(vector, length), memory)


def _matrix(weight: tf.Tensor) -> tf.Tensor | None:
    """W or Wᵀ, whichever has fewer columns; None for a bias and a depthwise kernel."""
    axes = regularizers.filter_axes(weight)
    if weight.shape.rank < 2 or axes != list(range(len(axes))):
        return None
    matrix = tf.reshape(weight, [-1, weight.shape[-1]])
    rows, columns = matrix.shape
    return matrix if rows >= columns else tf.transpose(matrix)
