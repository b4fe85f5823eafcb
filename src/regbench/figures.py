"""seaborn figures of the summary and the curves. A regularizer has one colour everywhere, by its place in params."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns

FOLDER = Path("plots")


def draw(summary, curves):
    """Draw every figure as a PNG into plots/.

    Args:
        summary: as from `summary.summarize`.
        curves: as from `summary.curves`.
    """
    sns.set_theme(style="whitegrid", context="notebook")
    palette = dict(zip(summary, sns.color_palette("colorblind", len(summary)), strict=True))
    curves = pd.DataFrame(curves)
    figures = {
        "reg_loss": reg_loss(curves, palette),
        "learning_curves": learning_curves(curves, palette),
        "accuracy": accuracy(summary, palette),
    }
    FOLDER.mkdir(exist_ok=True)
    for name, figure in figures.items():
        # A fixed date and program keep the bytes the same where the picture is.
        figure.savefig(FOLDER / f"{name}.png", dpi=120, bbox_inches="tight", metadata={"Software": None})
        plt.close(figure)
    return [FOLDER / f"{name}.png" for name in figures]


def reg_loss(curves, palette):
    """Reg loss after each epoch, a line a regularizer, with the range over seeds as a band."""
    penalised = curves[curves.groupby("regularizer")["reg_loss"].transform("max") > 0]
    figure, axes = plt.subplots(figsize=(7, 4))
    if len(penalised):
        _lines(penalised, "reg_loss", palette, axes)
        axes.set_yscale("log")
    axes.set(title="Regularization loss", xlabel="epoch", ylabel="sum of penalties (log scale)")
    _whole_epochs(axes, curves)
    return figure


def learning_curves(curves, palette):
    """Cross-entropy and accuracy by epoch, training dashed, validation drawn through."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), sharex=True)
    for axes, metric, label in ((left, "cross_entropy", "cross-entropy"), (right, "accuracy", "accuracy")):
        both = pd.concat(
            [
                curves.assign(split="validation", value=curves[f"val_{metric}"]),
                curves.assign(split="training", value=curves[metric]),
            ]
        )
        _lines(both, "value", palette, axes, style="split", dashes={"validation": "", "training": (3, 2)})
        axes.set(title=label.capitalize(), xlabel="epoch", ylabel=label)
        _whole_epochs(axes, curves)
    left.get_legend().remove()
    sns.move_legend(right, "center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    figure.tight_layout()
    return figure


def accuracy(summary, palette):
    """Accuracy on train and test, a bar a regularizer; the distance is the generalization gap."""
    longest = max(max(row["train_accuracy"], row["test_accuracy"]) for row in summary.values())
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.75 * len(summary)))
    for position, (name, row) in enumerate(summary.items()):
        for offset, split, alpha in ((-0.2, "train", 0.45), (0.2, "test", 1.0)):
            value = row[f"{split}_accuracy"]
            axes.barh(position + offset, value, 0.38, color=palette[name], alpha=alpha)
            axes.text(value + 0.01, position + offset, f"{split} {value:.1%}", va="center", fontsize=10)
    axes.set_yticks(range(len(summary)), list(summary))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(
        title="Accuracy on training and test images",
        xlabel="accuracy",
        xlim=(0, 1.15 * longest + 0.08),
    )
    return figure


def _lines(curves, y, palette, axes, **style):
    sns.lineplot(
        curves,
        x="epoch",
        y=y,
        hue="regularizer",
        palette=palette,
        hue_order=[name for name in palette if name in set(curves["regularizer"])],
        errorbar=("pi", 100),
        marker="o" if curves["epoch"].nunique() <= 30 else None,
        ax=axes,
        **style,
    )


def _whole_epochs(axes, curves):
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.set_xlim(0.7, curves["epoch"].max() + 0.3)
