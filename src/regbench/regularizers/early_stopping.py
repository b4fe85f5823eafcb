"""Ends training after `strength` epochs without a lower validation cross-entropy, and keeps the best epoch's weights.

The best epoch's weights are kept also where training runs to its end. Where the validation images choose the epoch, a
model's accuracy on them is too high; test accuracy is not. history.csv has a row for each epoch that was trained. The
smaller the strength, the sooner it ends; 0 is no regularizer.

Source: L. Prechelt, "Early Stopping — But When?", 1998.
Usual strengths: 3 to 20 epochs. In a training whose learning rate falls to 0, the last epoch is mostly the best.
Equals `keras.callbacks.EarlyStopping("val_cross_entropy", patience=strength, restore_best_weights=True)`. PyTorch: no
part of it; Lightning: `EarlyStopping(patience=strength)`.
"""

import math

SCOPE = None
WHOLE = True


def stops(history: list[dict], strength: float) -> bool:
    """Whether the last `strength` epochs were not better than the best one before."""
    losses = [row["val_cross_entropy"] for row in history]
    ordered = [math.inf if math.isnan(loss) else loss for loss in losses]
    return bool(ordered) and len(ordered) - 1 - ordered.index(min(ordered)) >= strength
