"""Users' own networks for tests: the text of a file with a function `build`, made from the lines of its body."""

HEAD = """import keras
import numpy as np

L = keras.layers
"""
BODY = """
inputs = keras.Input(input_shape)
x = L.Conv2D(8, 3, strides=4)(inputs)
x = L.BatchNormalization()(x)
x = L.ReLU()(x)
x = L.GlobalAveragePooling2D()(x)
return keras.Model(inputs, L.Dense(num_classes, dtype="float32", name="logits")(x))
"""
"""The body for a correct network."""

LAYER = """
@keras.saving.register_keras_serializable()
class Scale(L.Layer):
    def __init__(self, by=1.0, **others):
        super().__init__(**others)
        self.by = by

    def call(self, x):
        return x * self.by

    def get_config(self):
        return super().get_config() | {"by": self.by}

"""
"""A layer of the user's own."""


def text(body=BODY, before="", arguments="input_shape, num_classes"):
    lines = "".join(f"    {line}\n" for line in body.strip().splitlines())
    return f"{HEAD}{before}\ndef build({arguments}):\n{lines}"


def with_layer(line, body=BODY):
    """The body with one more line before the pooling."""
    return body.replace("x = L.ReLU()(x)\n", f"x = L.ReLU()(x)\n{line}\n")
