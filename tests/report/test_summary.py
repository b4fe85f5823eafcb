"""Runs → rows of numbers, metrics/summary.json and the curves."""

import csv
import json

import fake_runs
import numpy as np
import pytest
import scratch
from scipy import stats

from regbench.errors import UserError
from regbench.report import runs, statistics, summary
from regbench.report.results import Diverged, measured


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def rows_of(plan, **options):
    """Write runs and return their rows."""
    fake_runs.write(plan, **options)
    return summary.rows(plan, runs.read(plan))


def test_seeds_give_means_and_paired_differences():
    plan = fake_runs.report_plan(seeds=[0, 1, 2])
    # The third seed of l1 gains one image more than the others.
    rows = rows_of(plan, test=lambda place, seed: fake_runs.right(place, seed) + (place == 1 and seed == 2))
    assert list(rows) == ["none", "l1", "l2"]
    for row, correct in zip(rows.values(), ([200, 208, 216], [240, 248, 257], [280, 288, 296]), strict=True):
        accuracies = np.array(correct) / 400
        expected = stats.t.interval(0.95, 2, accuracies.mean(), stats.sem(accuracies))
        assert row.test.value == pytest.approx(accuracies.mean())
        assert (row.test.low, row.test.high) == pytest.approx(expected, abs=1e-6)
        assert row.test_sd == pytest.approx(accuracies.std(ddof=1))
        assert (row.correct, row.test.n) == (tuple(correct), 3)
    assert rows["none"].difference is rows["none"].verdict is None
    # Pairing removes the part of the spread that seeds share; the error of the choice of test images is added.
    first, second = (np.arange(400) < np.array(it)[:, None] for it in ([200, 208, 216], [240, 248, 257]))
    paired = statistics.difference_over_seeds_and_images(first, second)
    assert rows["l1"].difference == paired
    assert paired.p > stats.ttest_rel([240, 248, 257], [200, 208, 216]).pvalue
    assert (rows["l1"].p_corrected, rows["l1"].verdict) == (pytest.approx(2 * paired.p), "better")
    # The difference is the same with all three seeds, so its spread is not known.
    assert (rows["l2"].difference.value, rows["l2"].difference.low) == (0.2, None)
    assert (rows["l2"].difference.p, rows["l2"].verdict) == (0.25, "can't tell")
    assert [row.validation_pick for row in rows.values()] == [False, False, True]
    assert rows["l1"].gap.value == pytest.approx(0.125)


def test_one_seed_is_compared_image_by_image():
    rows = rows_of(fake_runs.report_plan())
    # Only the second model has 40 images right: p = 2 · 2⁻⁴⁰. Holm's factor is 2 for the smaller p (l2), 1 for l1.
    assert rows["l1"].difference.value == 0.1
    assert rows["l1"].difference.p == pytest.approx(2**-39)
    assert rows["l1"].p_corrected == pytest.approx(2**-39)
    assert rows["l2"].p_corrected == pytest.approx(2**-78)
    wilson = stats.binomtest(200, 400).proportion_ci(method="wilson")
    assert (rows["none"].test.low, rows["none"].test.high) == pytest.approx((wilson.low, wilson.high))
    assert rows["none"].test_sd is None


def test_another_baseline_or_none():
    rows = rows_of(fake_runs.report_plan(baseline="l2"))
    assert rows["l2"].difference is None
    assert (rows["none"].difference.value, rows["none"].verdict) == (pytest.approx(-0.2), "worse")
    assert not any(row.difference for row in rows_of(fake_runs.report_plan(baseline=None)).values())


@pytest.mark.parametrize("diverged", [["l2"], ["none"], ["none", "l1", "l2"]])
def test_a_run_that_diverged_has_its_row_and_no_numbers(tmp_path, diverged):
    plan = fake_runs.report_plan(seeds=[0, 1])
    fake_runs.write(plan)
    for name in diverged:
        fake_runs.diverge(tmp_path / f"runs/{name}-1")
    found = runs.read(plan)
    rows = summary.rows(plan, found)
    assert list(rows) == ["none", "l1", "l2"]
    assert [name for name, row in rows.items() if row == Diverged(diverged=((1, 2),))] == diverged
    kept = measured(rows)
    assert sum(row.validation_pick for row in kept.values()) == bool(kept)
    assert [name for name, row in kept.items() if row.difference] == (["l1"] if "none" in kept else [])
    assert {row["regularizer"] for row in summary.curves(found)} == set(kept)
    assert [name for name, row in summary.summarize(rows).items() if row == {"diverged": 1}] == diverged
    assert (summary.images(found) is None) == (len(diverged) == 3)


def test_summary_and_curves_are_written():
    plan = fake_runs.report_plan(seeds=[0, 1])
    rows = rows_of(plan)
    summary.write(rows, runs.read(plan))
    written = json.loads(summary.SUMMARY.read_text())
    assert written == summary.summarize(rows) == summary.parse(summary.SUMMARY.read_bytes())
    assert written["l1"] == {
        "accuracy_test": 0.61,
        "accuracy_test_corrupted": 0.525,
        "accuracy_validation": 0.56,
        "difference": 0.1,
        "gap": 0.125,
        "reg_loss": 1.0,
    }
    with open(summary.CURVES, newline="") as file:
        curves = list(csv.DictReader(file))
    assert len(curves) == 18
    assert list(curves[0]) == list(summary.CURVE_COLUMNS)
    assert [float(row["reg_loss"]) for row in curves if (row["regularizer"], row["seed"]) == ("l2", "1")] == [
        2,
        1,
        2 / 3,
    ]


def test_one_run_changes_nothing_of_the_others(tmp_path):
    """However one run changes: its effect on picks, corrections and order must not change another row."""
    plan = fake_runs.report_plan()
    before = summary.summarize(rows_of(plan))
    for correct in (0, 10, 205, 400):
        fake_runs.write_run(tmp_path / "runs/l2-0", 7, correct)
        now = summary.summarize(summary.rows(plan, runs.read(plan)))
        assert {name: row for name, row in now.items() if name != "l2"} == {
            name: row for name, row in before.items() if name != "l2"
        }
        assert len(now["l2"]) <= 6
    fake_runs.diverge(tmp_path / "runs/l2-0")
    now = summary.summarize(summary.rows(plan, runs.read(plan)))
    assert (now["none"], now["l1"], now["l2"]) == (before["none"], before["l1"], {"diverged": 1})


@pytest.mark.slow
@pytest.mark.dvc
def test_dvc_metrics_diff_shows_the_changed_regularizer_accuracy_first(tmp_path):
    repository = scratch.Repository(tmp_path)
    repository.run("git", "init", "-q", "-b", "main")
    repository.dvc("init", "-q")
    repository.write("dvc.yaml", "metrics: [metrics/summary.json]\n")
    repository.write(".gitignore", "runs\nplans\n")
    plan = fake_runs.report_plan()
    rows = rows_of(plan)
    summary.write(rows, runs.read(plan))
    repository.commit("before")
    fake_runs.write_run(tmp_path / "runs/l2-0", 5, 222)
    found = runs.read(plan)
    summary.write(summary.rows(plan, found), found)
    shown = [line for line in repository.dvc("metrics", "diff", "--md").splitlines() if "summary.json" in line]
    assert [line.split("|")[2].strip() for line in shown] == [
        "l2.accuracy_test",
        "l2.accuracy_test_corrupted",
        "l2.accuracy_validation",
        "l2.difference",
        "l2.reg_loss",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"l2": {"accuracy_test": 1', "metrics/summary.json is damaged"),
        ("[1]", "is damaged"),
        ('{"l2": {"accuracy_test": NaN}}', "is damaged"),
        (
            '{\n<<<<<<< HEAD\n"l2": {}\n',
            "has a merge conflict in line 2: resolve params.yaml, run `make repro`, and commit",
        ),
    ],
)
def test_a_damaged_summary_is_told_in_words(text, said):
    with pytest.raises(UserError, match=said):
        summary.parse(text.encode())


def test_corruptions_are_counted_over_seeds():
    rows = rows_of(fake_runs.report_plan(seeds=[0, 1]))
    # Before corruption 50 and 52 of 100 images are right. Each level makes 5 more wrong; of brightness, 2 more.
    lost = {"gaussian_noise": 5, "gaussian_blur": 5, "brightness": 2, "jpeg": 5}
    for corruption, loss in lost.items():
        assert rows["none"].corruptions[corruption] == pytest.approx([(51 - loss * level) / 100 for level in range(4)])
    assert rows["none"].corrupted == pytest.approx(
        0.51 - sum(loss * level for loss in lost.values() for level in (1, 2, 3)) / 1200
    )
    without = rows_of(fake_runs.report_plan(), corrupted=0)
    assert without["l1"].corrupted is None and not without["l1"].corruptions
    assert "accuracy_test_corrupted" not in summary.summarize(without)["l1"]


def test_weights_and_outputs():
    plan = fake_runs.report_plan(fake_runs.TWELVE, seeds=[0, 1], costs={"l1": 1.1, "mixup": 1.2, "l2": 0.9})
    rows = rows_of(plan)
    # The norm is over one stem, 17 depthwise and 17 pointwise kernels and the head; the rate is the median of 35.
    assert rows["l1"].norm == pytest.approx((4.5 + 17 * 3.5 + 17 * 2 + 1) ** 0.5)
    assert (rows["l1"].effective_learning_rate, rows["l1"].confidence) == (0.02, 0.6)
    costs = {name: row.cost for name, row in rows.items() if row.cost is not None}
    assert costs == {"none": 1, "l1": 1.1, "l2": 0.9, "mixup": 1.2, "mixup_l2": pytest.approx(1.08)}
    assert rows["mixup_l2"].kinds == ("mixup", "l2")


def test_largest_class():
    plan = fake_runs.report_plan()
    fake_runs.write(plan, largest=40)
    assert not summary.images(runs.read(plan)).unequal
    fake_runs.write(plan, largest=41)
    images = summary.images(runs.read(plan))
    assert images.unequal and images.largest_class == {"validation": 0.1025, "test": 0.1025}
