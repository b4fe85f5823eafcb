"""Does batch normalization make L2 useless? The default's none and l2, with batch normalization and without it.

    python benchmarks/batch_norm.py /tmp/batch_norm

Runs `regbench repro` in a clone of this repository: first with the default's none and l2, which trains only the runs
that the cache lacks, then with docs/batch_norm/params.yaml. Writes docs/batch_norm/results.json, which docs/batch_norm
shows as a table, and a figure beside it.
"""

import argparse
import csv
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import matplotlib.pyplot as plt
import project
import seaborn as sns
from project import ROOT, regbench

from regbench import files
from regbench.review import blocks, tables
from regbench.search import edit

DRAWN = {"val_accuracy": "validation accuracy", "norm_backbone": "norm of the backbone, √Σw²"}
FOLDER = ROOT / tables.BATCH_NORM.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where to clone to and to train; kept")
    committed = project.enter(parser.parse_args().folder)
    lines = {name: value for name, value in edit.raw_lines(committed).items() if name in ("none", "l2")}
    asked = {
        "yes": edit.with_sections(committed, lines, [0, 1, 2]),
        "no": (FOLDER / "params.yaml").read_text(),
    }
    found, begun = {}, time.perf_counter()
    for batch_norm, text in asked.items():
        Path("params.yaml").write_text(text)
        regbench("repro")
        report, rows = project.rows()
        found[batch_norm] = {"rows": rows, "curves": curves()}
    record = {
        "machine": blocks.made_here(),
        "minutes": round((time.perf_counter() - begun) / 60),
        "seeds": len(report.seeds),
        "images": report.images.test,
        "batch_norm": found,
    }
    files.write_json(ROOT / tables.BATCH_NORM, record)
    draw(found)


def curves() -> dict[str, dict[str, list[float]]]:
    """{regularizer: {column: a list of its means over seeds, one for each epoch}}."""
    values = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    with open("plots/curves.csv", newline="") as file:
        for row in csv.DictReader(file):
            for column in DRAWN:
                values[row["regularizer"]][column][int(row["epoch"])].append(float(row[column]))
    return {
        name: {
            column: [round(fmean(of_seeds), 4) for of_seeds in epochs.values()] for column, epochs in columns.items()
        }
        for name, columns in values.items()
    }


def draw(found: dict) -> None:
    """Plot accuracy and norm by epoch: a colour for each regularizer, dashed lines without batch normalization."""
    sns.set_theme(style="whitegrid", context="notebook")
    figure, panels = plt.subplots(1, len(DRAWN), figsize=(10, 4), layout="constrained")
    for axes, (column, words) in zip(panels, DRAWN.items(), strict=True):
        for batch_norm, style in {"yes": "-", "no": "--"}.items():
            for color, (name, curve) in enumerate(found[batch_norm]["curves"].items()):
                label = f"{name}, {'with' if batch_norm == 'yes' else 'without'} batch norm"
                values = curve[column]
                axes.plot(range(1, len(values) + 1), values, style, color=f"C{color}", label=label)
        axes.set(xlabel="epoch", ylabel=words, ylim=(0, None))
        axes.xaxis.set_major_locator(plt.MaxNLocator(integer=True))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(FOLDER / "curves.png", dpi=110, metadata={"Software": None})
    plt.close(figure)


if __name__ == "__main__":
    main()
