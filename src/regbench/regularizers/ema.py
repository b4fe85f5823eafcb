"""Evaluates and saves an average of the weights: after each step, strength · average + (1 − strength) · weights.

The average is smoother than the weights that SGD leaves, as if the learning rate had been lowered. Validation, pruning
and evaluation use the average. In history.csv, reg loss and norms are of the average; loss, cross-entropy and accuracy
of training are of the weights. Batch normalization's statistics fit the average only if train.batch_norm_images is
above 0.

Source: B. Polyak, A. Juditsky, "Acceleration of Stochastic Approximation by Averaging", 1992.
Usual strengths: 0.9 to 0.9999; the average covers about 1 / (1 − strength) steps, so take less for short trainings.
Equals `keras.optimizers.SGD(use_ema=True, ema_momentum=strength)`. timm: `--model-ema --model-ema-decay`; PyTorch:
`torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(strength))`.
"""

SCOPE = None
HIGHEST = 0.99999


def optimizer(strength: float) -> dict:
    """Arguments of `keras.optimizers.SGD`."""
    return {"use_ema": True, "ema_momentum": strength}
