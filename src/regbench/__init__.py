"""regbench: what does this regularizer do to my image classifier?

To use a trained model in Python:

    model = regbench.load("runs/l2-0/model.keras")
    classes = regbench.metadata("runs/l2-0/model.keras")["classes"]

`import regbench` alone imports no TensorFlow.
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras


def load(path: str | os.PathLike) -> "keras.Model":
    """Load a trained model, uint8 images [N, H, W, C] from 0 to 255 → float32 logits [N, K].

    Args:
        path: of model.keras.

    Raises:
        regbench.errors.UserError: there is no such file, or it is damaged or not a model.
    """
    from regbench.evaluation import saved

    return saved.load(path)


def metadata(path: str | os.PathLike) -> dict[str, Any]:
    """Read the metadata in a trained model's file: its classes, its input and output, and its run.

    Args:
        path: of model.keras.

    Raises:
        regbench.errors.UserError: there is no such file, it is damaged, or regbench did not save it.
    """
    from regbench.evaluation import saved

    return saved.metadata(path)
