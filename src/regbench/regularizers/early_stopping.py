"""Ends training after `strength` epochs without a lower validation cross-entropy, and keeps the best epoch's weights.

It also keeps the best epoch's weights if training runs to its end. The validation images choose the epoch, so a model's
accuracy on them is too high; test accuracy is not. history.csv has a row for each epoch that was trained. The smaller
the strength, the sooner training ends; 0 is no regularizer.

Source: L. Prechelt, "Early Stopping — But When?", 1998.
Usual strengths: 3 to 20 epochs. If the learning rate falls to 0, the last epoch is usually the best.
Equals `keras.callbacks.EarlyStopping("val_cross_entropy", patience=strength, restore_best_weights=True)`. PyTorch: has
none; Lightning: `EarlyStopping(patience=strength)`.
"""

import math

SCOPE = None
WHOLE = True


def stops(history: list[dict], strength: float) -> bool:
    """Whether none of the last `strength` epochs was better than the best one before them."""
    losses = [row["val_cross_entropy"] for row in history]
    ordered = [math.inf if math.isnan(loss) else loss for loss in losses]
    return bool(ordered) and len(ordered) - 1 - ordered.index(min(ordered)) >= strength
