"""Adds noise to each pixel of the network's input, from a normal distribution of standard deviation `strength`.

Pixels are already scaled to −1 to 1, so 0.1 is a twentieth of their range. New noise is drawn in each step; in
evaluation there is none. Small noise acts like a penalty on the network's derivative with respect to its input.

Source: C. M. Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", 1995.
Usual strengths: 0.05 to 0.3.
Equals `keras.layers.GaussianNoise(strength)` as the first layer. PyTorch: `x + strength * torch.randn_like(x)`.
"""

import keras

SCOPE = None
HIGHEST = 1


def in_network(network: keras.Model, strength: float) -> keras.Model:
    """Keras's GaussianNoise before the network."""
    images = keras.Input(network.input_shape[1:], name="image")
    noise = keras.layers.GaussianNoise(strength, seed=0, name="gaussian_noise")
    return keras.Model(images, network(noise(images)), name=network.name)
