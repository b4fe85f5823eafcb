"""Shortens the gradient of a step to length `strength` if it is longer; the length is the norm over all weights.

A rare batch with a huge gradient can't throw the weights far off. Penalties are part of the gradient. The smaller the
strength, the stronger it acts; 0 is no regularizer. If nearly all gradients are longer, nearly all steps have the same
length, learning rate × strength.

Source: R. Pascanu, T. Mikolov, Y. Bengio, "On the Difficulty of Training Recurrent Neural Networks", 2013,
arXiv 1211.5063.
Usual strengths: 0.1 to 10.
Equals `keras.optimizers.SGD(global_clipnorm=strength)`. PyTorch: `torch.nn.utils.clip_grad_norm_(model.parameters(),
strength)` before `optimizer.step()`; timm: `--clip-grad`.
"""

SCOPE = None


def optimizer(strength: float) -> dict:
    """Arguments of `keras.optimizers.SGD`."""
    return {"global_clipnorm": strength}
