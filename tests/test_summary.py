"""Many runs → table, curves and figures."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from regbench import figures, summary
from regbench.errors import UserError


@pytest.fixture
def runs_of(settings, tmp_path, monkeypatch):
    """A function that writes runs of known numbers for the params it is given."""
    monkeypatch.chdir(tmp_path)

    def write(options):
        for place, name in enumerate(options.reg):
            for seed in options.train.seeds:
                folder = tmp_path / "runs" / f"{name}-{seed}"
                folder.mkdir(parents=True)
                accuracy = 0.5 + 0.1 * place + 0.02 * seed
                scores = {"images": 80, "accuracy": accuracy, "cross_entropy": 1.25}
                evaluation = {
                    "regularizer": name,
                    "seed": seed,
                    "near_zero": 0.25,
                    "reg_loss": float(place),
                    "generalization_gap": 0.125,
                    **dict.fromkeys(("train", "validation", "test"), scores),
                }
                (folder / "evaluation.json").write_text(json.dumps(evaluation))
                rows = ["epoch,loss,cross_entropy,reg_loss,accuracy,val_cross_entropy,val_accuracy"]
                rows += [f"{epoch},2,1.5,{place / epoch},0.4,1.6,{accuracy}" for epoch in (1, 2, 3)]
                (folder / "history.csv").write_text("\n".join(rows) + "\n")
        return options

    return write


def test_means_over_seeds_in_the_order_of_params(runs_of, settings):
    options = runs_of(settings(**{"train.seeds": [0, 1]}))
    written, curves = summary.write(summary.read_runs(options))
    assert json.loads(summary.SUMMARY.read_text()) == written
    assert list(written) == ["none", "l1", "l2"]
    assert [row["test_accuracy"] for row in written.values()] == [0.51, 0.61, 0.71]
    assert all(row["seeds"] == 2 for row in written.values())
    with open(summary.CURVES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(curves) == 18
    assert list(rows[0]) == list(summary.CURVE_COLUMNS)
    assert [float(row["reg_loss"]) for row in rows if (row["regularizer"], row["seed"]) == ("l2", "1")] == [2, 1, 2 / 3]


def test_what_params_no_longer_name_is_left_out(runs_of, settings):
    runs_of(settings())
    options = settings()
    options = options.model_copy(update={"reg": {"none": {}}})
    written, curves = summary.write(summary.read_runs(options))
    assert list(written) == ["none"]
    assert {row["regularizer"] for row in curves} == {"none"}
    assert all(path.exists() for path in figures.draw(written, curves))


def test_missing_and_damaged_runs_are_named(runs_of, settings, tmp_path):
    options = runs_of(settings())
    (tmp_path / "runs/l1-0/evaluation.json").write_text('{"regularizer": ')
    with pytest.raises(UserError, match=r"l1-0 is missing or damaged .*`dvc repro evaluate@l1-0`"):
        summary.read_runs(options)


def test_figures_are_drawn_the_same_again(runs_of, settings):
    options = runs_of(settings(**{"train.seeds": [0, 1]}))
    written, curves = summary.write(summary.read_runs(options))
    paths = figures.draw(written, curves)
    assert {path.stem for path in paths} == {"accuracy", "learning_curves", "reg_loss"}
    first = [path.read_bytes() for path in paths]
    figures.draw(written, curves)
    assert first == [path.read_bytes() for path in paths]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 600
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_table_has_a_row_a_regularizer(runs_of, settings):
    written, _ = summary.write(summary.read_runs(runs_of(settings())))
    console = Console(width=120, record=True)
    console.print(summary.table(written))
    text = console.export_text()
    for name, accuracy in (("none", "50.0%"), ("l1", "60.0%"), ("l2", "70.0%")):
        assert any(name in line and accuracy in line for line in text.splitlines())
