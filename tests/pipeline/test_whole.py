"""The whole pipeline under real dvc: side by side, experiments, clones, regularizers that come and go."""

import csv
import json
import re
import shutil
import sys

import pytest
import yaml
from scratch import ROOT, Repository, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc]


def summary(repository):
    return json.loads(repository.read("metrics/summary.json"))


def terms(repository, run):
    return json.loads(repository.read(f"runs/{run}/evaluation/evaluation.json"))["regularizer"]


def regularizers_in_curves(repository):
    rows = csv.DictReader(repository.read("plots/curves.csv").splitlines())
    return list(dict.fromkeys(row["regularizer"] for row in rows))


def test_dvc_yaml_is_short():
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) < 80


def test_side_by_side_and_alone_give_the_same_bits(repository):
    results = ["runs/none-0", "runs/l2-0", "prepared", "report.md", "report.json", "metrics/summary.json", "plots"]

    def content():
        roots = [repository.folder / name for name in results]
        paths = [path for root in roots for path in [root, *root.rglob("*")]]
        return {path.relative_to(repository.folder): path.read_bytes() for path in paths if path.is_file()}

    alone = content()  # by `dvc repro`
    shutil.rmtree(repository.folder / "runs")
    shutil.rmtree(repository.folder / ".dvc/cache")
    (repository.folder / "dvc.lock").unlink()
    # All stages in new processes; forks made the template (preloaded.py).
    output = repository.run(sys.executable, "-m", "regbench", "repro", "--jobs", "2")
    assert all(f"{run} epoch 1/1: cross-entropy" in output for run in ("none-0", "l2-0"))
    assert "oneDNN" not in output
    assert content() == alone
    assert "up to date" in repository.regbench("repro")
    # The stages may be in another order in dvc.lock.
    committed = yaml.safe_load(repository.run("git", "show", "HEAD:dvc.lock"))
    assert yaml.safe_load(repository.read("dvc.lock")) == committed
    assert repository.run("git", "status", "--porcelain").strip() in ("", "M dvc.lock")


def test_a_clone_without_cache_compares_commits(figureless, tmp_path):
    figureless.dvc("exp", "run", "-S", "reg.l2=0.02")
    figureless.commit("l2: 0.02")
    figureless.run("git", "clone", "-q", str(figureless.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    table = clone.dvc("metrics", "diff", "HEAD~1", "--md")
    changed = re.findall(r"^\| metrics/summary.json *\| (\w+)\.(\w+) ", table, re.MULTILINE)
    assert {name for name, _ in changed} == {"l2"} and 1 <= len(changed) <= 8
    clone.dvc("plots", "diff", "HEAD~1", "-o", "page")
    charts = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*?\});\n", clone.read("page/index.html"))]
    assert len(charts) == 5
    for chart in charts:
        points = chart["data"]["values"]
        assert {(p["regularizer"], p["rev"]) for p in points} == {
            (name, rev) for name in ("none", "l2") for rev in ("HEAD~1", "workspace")
        }
        assert chart["layer"][0]["encoding"]["strokeDash"]["field"] == "rev"
        assert chart["encoding"]["color"]["field"] == "regularizer"


def test_small_strengths(figureless):
    settings = ("reg.l2=0.00005", "+reg.l1=1e-5", "+reg.orthogonal=0")
    output = figureless.dvc("exp", "run", *(word for setting in settings for word in ("-S", setting)))
    for kind, value in (("l2", 5e-5), ("l1", 1e-5), ("orthogonal", 0)):
        assert f"train@{kind}-0" in stages_run(output)
        (term,) = terms(figureless, f"{kind}-0")
        assert (term["kind"], term["strength"]) == (kind, value)
        assert (summary(figureless)[kind]["reg_loss"] == 0) == (value == 0)


def test_one_more_regularizer_and_one_less(figureless):
    output = figureless.dvc("exp", "run", "-S", "+reg.elastic={l1: 1e-5, l2: 1e-4}")
    assert set(stages_run(output)) == {"plan", "train@elastic-0", "evaluate@elastic-0", "report"}
    assert [term["scope"] for term in terms(figureless, "elastic-0")] == ["backbone", "all"]
    assert regularizers_in_curves(figureless) == ["none", "l2", "elastic"]

    output = figureless.dvc("exp", "run", "-S", "~reg.l2")
    assert set(stages_run(output)) <= {"plan", "report"}
    assert list(summary(figureless)) == regularizers_in_curves(figureless) == ["none", "elastic"]


def test_old_runs_are_set_aside(repository, tmp_path):
    """Otherwise this commit would be stale in every clone, because a clone does not have the old runs."""
    repository.replace("params.yaml", "  none: 0\n", "")
    repository.replace("params.yaml", "  baseline: none", "  baseline: l2")
    repository.dvc("repro")
    assert sorted(path.name for path in (repository.folder / "runs").iterdir()) == ["l2-0"]
    assert (repository.folder / ".regbench/removed/none-0/model.keras").exists()
    repository.commit("l2 alone")
    repository.dvc("remote", "add", "--default", "store", str(tmp_path / "remote"))
    repository.dvc("push")
    repository.commit("a remote")
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    clone.dvc("pull")
    assert "up to date" in clone.dvc("status")


def test_a_run_that_diverges_is_a_row_of_the_report(repository):
    output = repository.dvc("exp", "run", "-S", "+reg.wild={l2: 1000}", "-S", "train.batch_size=2")
    assert "wild-0 diverged: its loss was" in output
    assert summary(repository)["wild"] == {"diverged": 1}
    assert "wild diverged with seed 0 in epoch 1: lower" in repository.read("report.md")
    assert "wild" not in regularizers_in_curves(repository)
    assert "diverged" in repository.regbench("table")


def test_bad_params_are_told_before_anything_runs(repository):
    repository.replace("params.yaml", "  epochs: 1\n", "  epoch: 1\n")
    for program in (repository.regbench, repository.dvc):
        output = program("repro", check=False)
        assert repository.returncode != 0
        assert "train.epoch: unknown key; did you mean epochs?" in output and "train.epochs: missing" in output
        assert "Traceback" not in output


def test_queued_experiments_run_in_copies(figureless):
    figureless.dvc("exp", "run", "--queue", "-S", "reg.l2=0.02,0.03")
    output = figureless.dvc("exp", "run", "--run-all", "--jobs", "2")
    assert "Traceback" not in output
    names = re.findall(r"\[([\w-]+)\]", figureless.dvc("exp", "list"))
    assert len(names) == 2
    figureless.dvc("exp", "apply", names[0])
    queued = figureless.read("runs/l2-0/evaluation/evaluation.json")
    figureless.dvc("repro", "-f", "-s", "train@l2-0", "evaluate@l2-0")
    assert figureless.read("runs/l2-0/evaluation/evaluation.json") == queued
