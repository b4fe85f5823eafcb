"""Many runs → table, curves and figures."""

import csv
import json
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image
from rich.console import Console
from scipy import stats

from regbench import figures, files, summary
from regbench.errors import UserError

IMAGES = 400


@pytest.fixture
def runs_of(settings, tmp_path, monkeypatch):
    """A function that writes runs of known numbers for the params it is given.

    The test accuracy is 0.5, and 0.1 more for each line down and 0.02 more for each seed; validation's is 0.05 less.
    """
    monkeypatch.chdir(tmp_path)

    def write(options):
        for place, name in enumerate(options.reg):
            for seed in options.train.seeds:
                folder = tmp_path / "runs" / f"{name}-{seed}"
                accuracy = round(0.5 + 0.1 * place + 0.02 * seed, 2)
                scores = {"images": IMAGES, "accuracy": accuracy, "cross_entropy": 1.25, "calibration_error": 0.03}
                evaluation = {
                    "exact_zeros": 0.0,
                    "near_zero": 0.25,
                    "reg_loss": float(place),
                    "generalization_gap": 0.125,
                    "train": scores | {"accuracy": accuracy + 0.125},
                    "validation": scores | {"accuracy": accuracy - 0.05},
                    "test": scores,
                }
                files.write_json(folder / "evaluation.json", evaluation)
                files.write_csv(
                    folder / "history.csv",
                    summary.HISTORY_COLUMNS,
                    ([epoch, place / epoch, place / epoch, 0, 30, 3, 1.5, 0.4, 1.6, accuracy] for epoch in (1, 2, 3)),
                )
                files.write_csv(
                    folder / "predictions.csv",
                    ("split", "index", "label", "prediction"),
                    [("validation", 0, 3, 3)]
                    + [("test", index, 3, 3 if index < accuracy * IMAGES else 4) for index in range(IMAGES)],
                )
                columns = ("layer", "weights", "sum_squares", "near_zero", "effective_learning_rate")
                layers = [
                    ("stem", 864, 3.5, 20, 0.02),
                    ("block0_depthwise", 288, 2.5, 20, 0.03),
                    ("head", 90, 1, 5, ""),
                ]
                files.write_csv(folder / "layers.csv", columns, layers)
                ends = [-np.inf, -2.0, -1.0, 0.0, np.inf]
                histogram = zip(ends, ends[1:], (place, 30, 10, 0), strict=False)
                files.write_csv(folder / "weights.csv", ("log10_low", "log10_high", "weights"), histogram)
                pruning = [(0, 0, accuracy), (0.5, 0.01, accuracy / 2)]
                files.write_csv(folder / "pruning.csv", ("pruned", "threshold", "validation_accuracy"), pruning)
        return options

    return write


def written(options):
    return summary.write(options, summary.read_runs(options))


def test_seeds_give_means_and_paired_differences(runs_of, settings):
    options = runs_of(settings(**{"train.seeds": [0, 1, 2]}))
    table, curves = written(options)
    assert json.loads(summary.SUMMARY.read_text()) == table
    assert list(table) == ["none", "l1", "l2"]
    for row, accuracies in zip(table.values(), ([0.5, 0.52, 0.54], [0.6, 0.62, 0.64], [0.7, 0.72, 0.74]), strict=True):
        expected = stats.t.interval(0.95, 2, np.mean(accuracies), stats.sem(accuracies))
        assert row["test_accuracy"] == pytest.approx(np.mean(accuracies))
        assert (row["test_accuracy_low"], row["test_accuracy_high"]) == pytest.approx(expected, abs=1e-6)
        assert row["test_accuracy_sd"] == pytest.approx(0.02)
        assert row["seeds"] == 3
    assert "difference" not in table["none"]
    # The same for every seed: pairing takes the seeds' own spread away.
    assert [table["l1"][key] for key in ("difference", "difference_low")] == pytest.approx([0.1, 0.1], abs=1e-6)
    assert [row["validation_pick"] for row in table.values()] == [0, 0, 1]
    with open(summary.CURVES, newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(curves) == 27
    assert list(rows[0]) == list(summary.CURVE_COLUMNS)
    assert [float(row["reg_loss"]) for row in rows if (row["regularizer"], row["seed"]) == ("l2", "1")] == [2, 1, 2 / 3]


def test_one_seed_is_compared_image_by_image(runs_of, settings):
    table, _ = written(runs_of(settings()))
    # 40 images that only the second model has right: 2⁻⁴⁰ twice, and Holm's 2 for two comparisons.
    assert table["l1"]["difference"] == 0.1
    assert table["l1"]["p_value"] == pytest.approx(0, abs=1e-6)
    wilson = stats.binomtest(200, 400).proportion_ci(method="wilson")
    assert table["none"]["test_accuracy_low"] == pytest.approx(wilson.low, abs=1e-6)
    assert "test_accuracy_sd" not in table["none"]


def test_another_baseline_or_none(runs_of, settings):
    options = runs_of(settings(**{"report.baseline": "l2"}))
    table, _ = written(options)
    assert "difference" not in table["l2"]
    assert table["none"]["difference"] == pytest.approx(-0.2)
    table, _ = written(settings(**{"report.baseline": None}))
    assert not any("difference" in row for row in table.values())


def test_verdicts_say_what_the_data_can_tell(runs_of, settings, tmp_path):
    options = runs_of(settings())
    runs = summary.read_runs(options)
    table, _ = summary.write(options, runs)
    said = list(summary.verdicts(options, runs, table))
    assert said[0].startswith("The model with l1 is better than the one with none on these test images: +10.0 points [")
    assert said[0].endswith("p < 0.001.")
    assert said[2] == "Validation picks l2: 65.0% there, 70.0% on test."
    assert "corrected for 2 comparisons (Holm)" in said[3] and "add to train.seeds" in said[3]

    table["l1"] |= {"difference": -0.01, "difference_low": -0.03, "difference_high": 0.01, "p_value": 0.41}
    said = list(summary.verdicts(options, runs, table))
    assert said[0].startswith("Between l1 and none the data can't tell: −1.0 points [−3.0, +1.0], p = 0.410")


def test_report_has_table_verdict_and_figures(runs_of, settings):
    options = runs_of(settings())
    runs = summary.read_runs(options)
    table, _ = summary.write(options, runs)
    summary.write_report(options, runs, table, figures.draw(options, runs))
    text = summary.REPORT.read_text()
    assert "| l2 | 70.0 [65.3, 74.3] | +20.0 [" in text
    assert all(f"- {sentence}\n" in text for sentence in summary.verdicts(options, runs, table))
    pictures = re.findall(r"!\[.+\]\((plots/.+\.png)\)", text)
    assert len(pictures) == 8
    assert list(summary.made_of(text)) == [
        f"runs/{name}-0/{file}"
        for name in ("none", "l1", "l2")
        for file in ("evaluation.json", "history.csv", "layers.csv", "weights.csv", "pruning.csv", "predictions.csv")
    ]
    assert all((summary.REPORT.parent / picture).exists() for picture in pictures)


def test_what_params_no_longer_name_is_left_out(runs_of, settings):
    runs_of(settings())
    options = settings()
    options = options.model_copy(update={"reg": {"none": options.reg["none"]}})
    table, curves = written(options)
    assert list(table) == ["none"]
    assert {row["regularizer"] for row in curves} == {"none"}
    assert all(path.exists() for path, _ in figures.draw(options, summary.read_runs(options)))


def test_missing_and_damaged_runs_are_named(runs_of, settings, tmp_path):
    options = runs_of(settings())
    (tmp_path / "runs/l1-0/evaluation.json").write_text('{"regularizer": ')
    with pytest.raises(UserError, match=r"l1-0 is missing or damaged .*`dvc repro evaluate@l1-0`"):
        summary.read_runs(options)


def diverge(tmp_path, run):
    """Let a run that `runs_of` wrote be one that diverged in epoch 2."""
    folder = tmp_path / "runs" / run
    files.write_json(folder / "evaluation.json", {"regularizer": run, "diverged": True})
    rows = [[1, 1e9, 1e9, 0, 1e9, 1e9, 1e9, 0.1, 1e9, 0.1], [2, *[""] * (len(summary.HISTORY_COLUMNS) - 1)]]
    files.write_csv(folder / "history.csv", summary.HISTORY_COLUMNS, rows)


@pytest.mark.parametrize("diverged", [["l2"], ["none"], ["none", "l1", "l2"]])
def test_a_run_that_diverged_has_its_row_and_no_numbers(runs_of, settings, tmp_path, diverged):
    options = runs_of(settings(**{"train.seeds": [0, 1]}))
    for name in diverged:
        diverge(tmp_path, f"{name}-1")
    runs = summary.read_runs(options)
    table, curves = summary.write(options, runs)
    assert list(table) == ["none", "l1", "l2"]
    assert [name for name, row in table.items() if row == {"diverged": 1, "seeds": 2}] == diverged
    kept = [name for name in table if name not in diverged]
    assert sum(table[name]["validation_pick"] for name in kept) == bool(kept)
    assert [name for name in kept if "difference" in table[name]] == (["l1"] if kept and "none" in kept else [])
    assert {row["regularizer"] for row in curves} == set(kept)
    drawn = figures.draw(options, runs)
    assert len(drawn) == 8 and all(path.exists() for path, _ in drawn)
    summary.write_report(options, runs, table, drawn)
    text = summary.REPORT.read_text()
    assert "nan" not in text + summary.SUMMARY.read_text()
    for name in diverged:
        assert f"| {name} | diverged, 1 of 2 |" in text
        assert f"- {name} diverged with seed 1 in epoch 2: lower train.learning_rate or its strength." in text
    console = Console(width=80, record=True)
    console.print(summary.table(table))
    assert console.export_text().count("diverged, 1 of 2") == len(diverged)


def test_figures_are_drawn_the_same_again(runs_of, settings):
    options = runs_of(settings(**{"train.seeds": [0, 1]}))
    runs = summary.read_runs(options)
    paths = [path for path, _ in figures.draw(options, runs)]
    first = [path.read_bytes() for path in paths]
    figures.draw(options, runs)
    assert first == [path.read_bytes() for path in paths]
    for path in paths:
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert pixels.shape[1] > 500
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_dvc_yaml_lists_every_figure(runs_of, settings):
    options = runs_of(settings())
    drawn = {path.as_posix() for path, _ in figures.draw(options, summary.read_runs(options))}
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    kept = {next(iter(output)) for output in pipeline["stages"]["report"]["outs"]}
    assert {path for path in kept if path.endswith(".png")} == drawn
    assert {plot for plot in pipeline["plots"] if isinstance(plot, str)} == drawn


def test_table_has_a_row_a_regularizer(runs_of, settings):
    table, _ = written(runs_of(settings()))
    console = Console(width=80, record=True)
    console.print(summary.table(table))
    text = console.export_text()
    for name, accuracy in (("none", "50.0 ["), ("l1", "60.0 ["), ("l2", "70.0 [")):
        assert any(name in line and accuracy in line for line in text.splitlines())
    assert "…" not in text


@pytest.mark.parametrize(("fraction", "shown"), [(0.0312, "+3.1"), (-0.1, "−10.0"), (-0.0004, "+0.0"), (0, "+0.0")])
def test_points(fraction, shown):
    assert summary.points(fraction) == shown
