"""The article's setting, each training validated twice: with batch normalization's moving and recomputed averages.

    python benchmarks/averages.py docs/article/params-32px.yaml /tmp/averages

Runs `regbench repro` with those params in a clone of this repository. Then writes docs/article/PIXELSpx.json, which
docs/article shows as a table, and two figures beside it. Finished trainings in the clone are not repeated, and a
training that was cut off continues from its last checkpoint. With `--so-far` nothing is trained: the epochs that are in
the histories and checkpoints are used.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import project
import seaborn as sns
from matplotlib.ticker import LogFormatter, MaxNLocator
from project import ROOT, regbench

from regbench import files, params
from regbench.review import blocks, tables
from regbench.training import checkpoint

READ = {"moving": "val_accuracy_moving", "recomputed": "val_accuracy"}
STYLES = {"recomputed": "-", "moving": "--"}
WORDS = {"moving": "moving averages, as in the article", "recomputed": "recomputed averages"}


class Plain(LogFormatter):
    """Labels the same ticks as `LogFormatter`, but writes 0.6 instead of 6e-01."""

    def __call__(self, value: float, position: int | None = None) -> str:
        return f"{value:g}" if super().__call__(value, position) else ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("params", type=Path, help="docs/article/params.yaml (224 pixels), or params-32px.yaml")
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    parser.add_argument("--so-far", action="store_true", help="train nothing; use the epochs trained so far")
    arguments = parser.parse_args()
    chosen = arguments.params.resolve()
    project.enter(arguments.folder)
    Path("params.yaml").write_text(chosen.read_text())
    settings, took = params.load(), {}
    if not arguments.so_far:
        begun = time.perf_counter()
        regbench("repro")
        took["minutes"] = round((time.perf_counter() - begun) / 60)
    found = {
        "machine": blocks.made_here(),
        **took,
        "image_size": settings.data.image_size,
        "train_images": json.loads(Path("prepared/train/split.json").read_text())["images"],
        "images": json.loads(Path("prepared/validation/split.json").read_text())["images"],
        "runs": {name: [history(f"{name}-{seed}") for seed in settings.seeds] for name in settings.reg},
    }
    beside = ROOT / f"docs/article/{found['image_size']}px"
    files.write_json(beside.with_suffix(".json"), found)
    draw(found, beside)


def history(run: str) -> dict[str, list[float]]:
    """{name: a value for each epoch} of a run, also of an unfinished one: both accuracies, and reg loss at its end."""
    ended = Path(f"runs/{run}/history.csv")
    if ended.exists():
        with open(ended, newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        states = list(checkpoint.FOLDER.glob(f"{run}-*/*-*.npz"))
        if not states:
            sys.exit(f"no epoch of {run} has ended yet")
        with np.load(max(states, key=lambda path: path.stat().st_mtime)) as saved:
            rows = json.loads(str(saved["state"]))["history"]
    columns = READ | {"reg_loss": "reg_loss"}
    return {name: [round(float(row[column]), 6) for row in rows] for name, column in columns.items()}


def draw(found: dict, beside: Path) -> None:
    """Plot both accuracies by epoch, and the penalties together with those that the article prints."""
    sns.set_theme(style="whitegrid", context="notebook")
    runs, article = found["runs"], json.loads((ROOT / tables.ARTICLE).read_text())
    colors = dict(zip(runs, sns.color_palette("colorblind"), strict=False))

    figure, panels = plt.subplots(1, len(runs), figsize=(11, 3.6), sharey=True, layout="constrained")
    for axes, (name, seeds) in zip(panels, runs.items(), strict=True):
        for reading, style in STYLES.items():
            lines(axes, [run[reading] for run in seeds], color=colors[name], linestyle=style)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[0].set(ylabel="accuracy on test images", ylim=(0, None))
    handles = [plt.Line2D([], [], color="black", linestyle=STYLES[reading], label=WORDS[reading]) for reading in STYLES]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    save(figure, beside, "averages")

    penalized = {name: seeds for name, seeds in runs.items() if name in article["reg_loss"]}
    figure, panels = plt.subplots(1, len(penalized), figsize=(9, 3.6), layout="constrained")
    for axes, (name, seeds) in zip(panels, penalized.items(), strict=True):
        lines(axes, [run["reg_loss"] for run in seeds], color=colors[name], label="here")
        printed = article["reg_loss"][name]
        axes.plot(epochs(printed), printed, "k.", label="article, 224 pixels")
        axes.set(title=name, xlabel="epoch", ylabel="reg loss", yscale="log")
        axes.yaxis.set_major_formatter(Plain())
        axes.yaxis.set_minor_formatter(Plain())
        axes.legend(frameon=False)
    save(figure, beside, "reg_loss")


def lines(axes: plt.Axes, seeds: Sequence[Sequence[float]], label: str | None = None, **style: object) -> None:
    """Plot the mean over seeds, and each seed faintly behind it."""
    if len(seeds) > 1:
        for values in seeds:
            axes.plot(epochs(values), values, alpha=0.25, linewidth=1, **style)
    # Only over the epochs that all seeds have.
    mean = [sum(values) / len(values) for values in zip(*seeds, strict=False)]
    axes.plot(epochs(mean), mean, label=label, **style)


def epochs(values: Sequence[float]) -> range:
    """1, 2, …, one for each value."""
    return range(1, len(values) + 1)


def save(figure: plt.Figure, beside: Path, what: str) -> None:
    figure.savefig(beside.with_name(f"{beside.name}-{what}.png"), dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
