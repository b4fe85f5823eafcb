"""Reading runs, and moving aside files and folders that no plan names."""

import json
import re

import fake_runs
import pytest

from regbench.errors import UserError
from regbench.report import runs


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan of none, l1 and l2 with one seed; its runs are written."""
    monkeypatch.chdir(tmp_path)
    plan = fake_runs.report_plan()
    fake_runs.write(plan)
    return plan


def test_runs_are_read_in_the_order_of_params(plan):
    found = runs.read(plan)
    assert [run.key for run in found] == ["none-0", "l1-0", "l2-0"]
    assert [run.evaluation.test.correct for run in found] == [sum(run.right) for run in found] == [200, 240, 280]
    assert not any(run.diverged for run in found)
    assert list(found[0].md5s) == [
        "history.csv",
        "evaluation/confusion.csv",
        "evaluation/evaluation.json",
        "evaluation/layers.csv",
        "evaluation/predictions.csv",
        "evaluation/pruning.csv",
        "evaluation/weights.csv",
    ]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("evaluation/evaluation.json", '{"diverged": '),
        ("evaluation/evaluation.json", "[]"),
        ("evaluation/evaluation.json", None),
        ("evaluation/evaluation.json", '{"diverged": false, "test": {"images": 0}}'),
        ("evaluation/predictions.csv", "split,label,prediction\ntest,1,1\n"),
        ("evaluation/predictions.csv", ""),
        ("evaluation/layers.csv", "layer\nstem\n"),
        ("evaluation/weights.csv", "log10_low,log10_high,weights\n1\n"),
        ("history.csv", "epoch\n1\n"),
        ("history.csv", None),
        ("history.csv", "\0\0\0"),
    ],
)
def test_missing_and_damaged_runs_are_named(plan, tmp_path, file, text):
    path = tmp_path / "runs/l1-0" / file
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(UserError, match=r"^runs/l1-0 is missing or damaged .*`dvc repro evaluate@l1-0`$"):
        runs.read(plan)


def test_runs_of_other_test_images_are_named(plan, tmp_path):
    fake_runs.write_run(tmp_path / "runs/l2-0", 2, 100, images=200)
    with pytest.raises(UserError, match=r"^l2-0 were measured on other test images"):
        runs.read(plan)
    fake_runs.write_run(tmp_path / "runs/l2-0", 2, 100, corrupted=20)
    with pytest.raises(UserError, match=r"^l2-0 were measured on other test images"):
        runs.read(plan)


def test_training_that_diverged_counts_whatever_the_model_can_do(plan, tmp_path):
    whole = (tmp_path / "runs/l1-0/evaluation/evaluation.json").read_text()
    fake_runs.diverge(tmp_path / "runs/l1-0")
    assert [run.diverged for run in runs.read(plan)] == [False, True, False]
    (tmp_path / "runs/l1-0/evaluation/evaluation.json").write_text(whole)
    found = runs.read(plan)
    assert [run.diverged for run in found] == [False, True, False]
    assert [run.name for run in runs.whole(found)] == ["none", "l2"]


def test_what_the_plan_does_not_name_is_moved_aside(plan, tmp_path):
    fake_runs.write_run(tmp_path / "runs/old-0", 0, 100)
    (tmp_path / "runs/notes.txt").write_text("mine")
    (tmp_path / "runs/l2-0/predictions.csv").write_text("of an earlier version")
    (tmp_path / "runs/l2-0/model.keras").write_text("kept")
    assert runs.set_aside(plan) == ["l2-0/predictions.csv", "notes.txt", "old-0"]
    removed = tmp_path / runs.REMOVED
    assert json.loads((removed / "old-0/evaluation/evaluation.json").read_text())["test"]["correct"] == 100
    assert (removed / "notes.txt").read_text() == "mine"
    assert (removed / "l2-0/predictions.csv").exists() and (tmp_path / "runs/l2-0/model.keras").exists()
    assert runs.set_aside(plan) == []
    # A later run of the same name does not replace it.
    fake_runs.write_run(tmp_path / "runs/old-0", 0, 300)
    assert runs.set_aside(plan) == ["old-0"]
    kept = [
        json.loads(path.read_text())["test"]["correct"] for path in removed.rglob("old-0*/evaluation/evaluation.json")
    ]
    assert sorted(kept) == [100, 300]


def test_no_runs_at_all(plan, tmp_path):
    assert runs.set_aside(plan, tmp_path / "nowhere") == []
    with pytest.raises(UserError, match=re.escape("nowhere/none-0 is missing")):
        runs.read(plan, tmp_path / "nowhere")
