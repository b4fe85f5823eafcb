"""The pipeline under real dvc, in one scratch repository whose tests build on each other, in the order they stand."""

import csv
import json
import re
import shutil

import pytest
import yaml
from conftest import copy_project, tiny_params


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scratch") / "a path with spaces"
    return copy_project(folder, tiny_params(image_folder))


def stages_run(output):
    """The names of the stages that a dvc command really ran."""
    return re.findall(r"Running stage '([^']+)'", output)


def summary(repository):
    return json.loads(repository.read("metrics/summary.json"))


def strength(repository, run):
    return json.loads(repository.read(f"runs/{run}/evaluation.json"))["strengths"]


def regularizers_in_curves(repository):
    return list(
        dict.fromkeys(row["regularizer"] for row in csv.DictReader(repository.read("plots/curves.csv").splitlines()))
    )


def test_whole_comparison_side_by_side(repository):
    output = repository.run("env", "PYTHONPATH=src", "JOBS=3", "bash", "stages/side_by_side.sh")
    for run in ("none-0", "l1-0", "l2-0"):
        assert f"{run} epoch 1/1: cross-entropy" in output
    assert "oneDNN" not in output
    assert list(summary(repository)) == ["none", "l1", "l2"]
    assert summary(repository)["none"]["reg_loss"] == 0
    assert repository.run("env", "PYTHONPATH=src", "python", "-m", "regbench.summary").count("[") >= 5
    # Alone it may compute two operations at once.
    files = [repository.folder / "runs/l2-0" / name for name in ("model.keras", "evaluation.json")]
    side_by_side = [file.read_bytes() for file in files]
    repository.dvc("repro", "-f", "-s", "train@l2-0", "evaluate@l2-0")
    assert [file.read_bytes() for file in files] == side_by_side
    repository.dvc("repro")
    repository.commit("first results")
    assert "up to date" in repository.dvc("repro")


def test_one_strength_trains_one_regularizer(repository):
    before = summary(repository)
    output = repository.dvc("exp", "run", "-S", "reg.l2=0.0005")
    assert stages_run(output) == ["train@l2-0", "evaluate@l2-0", "report"]
    after = summary(repository)
    assert after["l2"] != before["l2"]
    # Two numbers of a row depend on the others: Holm's correction, and which of them validation picks.
    for row in (*before.values(), *after.values()):
        for key in ("p_value", "validation_pick"):
            row.pop(key, None)
    assert (after["none"], after["l1"]) == (before["none"], before["l1"])
    repository.commit("l2: 0.0005")


def test_a_clone_without_cache_compares_commits(repository, tmp_path):
    from conftest import Repository

    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    table = clone.dvc("metrics", "diff", "HEAD~1", "--md")
    rows = [line for line in table.splitlines() if "l2.reg_loss" in line]
    assert len(rows) == 1
    numbers = re.findall(r"\d+\.\d+", rows[0])
    assert len(numbers) == 3 and float(numbers[0]) > float(numbers[1]) > 0
    clone.dvc("plots", "diff", "HEAD~1", "-o", "page")
    page = clone.read("page/index.html")
    charts = [json.loads(spec) for spec in re.findall(r"var spec = (\{.*?\});\n", page)]
    assert len(charts) == 5
    for chart in charts:
        points = chart["data"]["values"]
        assert {(p["regularizer"], p["rev"]) for p in points} == {
            (name, rev) for name in ("none", "l1", "l2") for rev in ("HEAD~1", "workspace")
        }
        assert chart["layer"][0]["encoding"]["strokeDash"]["field"] == "rev"
        assert chart["encoding"]["color"]["field"] == "regularizer"


def test_going_back_trains_nothing(repository):
    output = repository.dvc("exp", "run", "-S", "reg.l2=0.001")
    assert stages_run(output) == ["report"]
    assert strength(repository, "l2-0") == {"l2": 0.001}


@pytest.mark.parametrize(("written", "value"), [("0.00005", 5e-5), ("1e-5", 1e-5), ("0", 0)])
def test_small_strengths(repository, written, value):
    output = repository.dvc("exp", "run", "-S", f"reg.l2={written}")
    assert "train@l2-0" in stages_run(output)
    assert strength(repository, "l2-0") == {"l2": value}
    assert (summary(repository)["l2"]["reg_loss"] == 0) == (value == 0)


def test_one_more_regularizer_and_one_less(repository):
    output = repository.dvc("exp", "run", "-S", "+reg.elastic={l1: 1e-5, l2: 1e-4}")
    assert stages_run(output) == ["train@elastic-0", "evaluate@elastic-0", "report"]
    assert strength(repository, "elastic-0") == {"l1": 1e-5, "l2": 1e-4}
    assert regularizers_in_curves(repository) == ["none", "l1", "l2", "elastic"]

    shutil.copytree(repository.folder / "runs/l1-0", repository.folder / "l1-0")
    output = repository.dvc("exp", "run", "-S", "~reg.l1")
    assert stages_run(output) == ["report"]
    # dvc takes the old files away; wherever they came back from, they are left out.
    shutil.rmtree(repository.folder / "runs/l1-0", ignore_errors=True)
    (repository.folder / "l1-0").rename(repository.folder / "runs/l1-0")
    output = repository.dvc("repro")
    assert stages_run(output) == ["report"]
    assert "not in params.yaml, so left out: runs/l1-0. Delete what you don't need" in output
    assert list(summary(repository)) == ["none", "l2", "elastic"]
    assert regularizers_in_curves(repository) == ["none", "l2", "elastic"]


def test_a_run_that_diverges_is_a_row_of_the_report(repository):
    output = repository.dvc("exp", "run", "-S", "+reg.wild={l2: 1000}", "-S", "train.batch_size=8")
    assert "wild-0 diverged: its loss was" in output
    assert summary(repository)["wild"] == {"diverged": 1, "seeds": 1}
    assert "wild diverged with seed 0 in epoch 1: lower" in repository.read("report.md")
    assert "wild" not in regularizers_in_curves(repository)
    assert "diverged" in repository.run("env", "PYTHONPATH=src", "python", "-m", "regbench.summary")
    repository.dvc("exp", "run", "-S", "~reg.wild", "-S", "train.batch_size=32")


def test_one_more_seed_trains_that_seed_only(repository):
    output = repository.dvc("exp", "run", "-S", "~reg.elastic", "-S", "+reg.last={proximal_l1: 0.01, scope: head}")
    assert stages_run(output) == ["train@last-0", "evaluate@last-0", "report"]
    repository.dvc("exp", "run", "-S", "~reg.last")
    output = repository.dvc("exp", "run", "-S", "train.seeds=[0,1]")
    assert set(stages_run(output)) == {"train@none-1", "evaluate@none-1", "train@l2-1", "evaluate@l2-1", "report"}
    assert {row["seeds"] for row in summary(repository).values()} == {2}


def test_the_order_of_the_regularizers_trains_nothing(repository):
    text = repository.read("params.yaml")
    params = yaml.safe_load(text)
    params["reg"] = dict(reversed(params["reg"].items()))
    (repository.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    assert stages_run(repository.dvc("repro")) == ["report"]
    assert list(summary(repository)) == list(params["reg"])
    (repository.folder / "params.yaml").write_text(text)
    repository.dvc("repro")


def test_a_failing_run_does_not_stop_the_others(repository):
    script = repository.read("stages/train.py")
    broken = script.replace(
        "    settings = params.load()\n", "    settings = params.load()\n    assert sys.argv[1] != 'l2'\n"
    )
    assert broken != script
    (repository.folder / "stages/train.py").write_text(broken)
    side_by_side = ("bash", "stages/side_by_side.sh")
    output = repository.run("env", "PYTHONPATH=src", "JOBS=2", *side_by_side, check=False)
    assert repository.returncode == 1
    assert "l2-0: " in output and "error: some runs failed" in output
    assert all(f"none-{seed} epoch 1/1" in output for seed in (0, 1))
    status = repository.dvc("status")
    assert "train@l2-0:" in status and "train@none-0:" not in status and "train@none-1:" not in status
    (repository.folder / "stages/train.py").write_text(script)
    repository.dvc("repro")
    output = repository.run("env", "PYTHONPATH=src", "JOBS=two", *side_by_side, check=False)
    assert "error: JOBS=two is not allowed" in output


def test_bad_params_are_told_before_anything_runs(repository):
    text = repository.read("params.yaml")
    (repository.folder / "params.yaml").write_text(text.replace("  epochs: 1", "  epoch: 1"))
    output = repository.run("env", "PYTHONPATH=src", "bash", "stages/side_by_side.sh", check=False)
    (repository.folder / "params.yaml").write_text(text)
    assert repository.returncode == 1
    assert "train.epoch: unknown key; did you mean epochs?" in output
    assert "train.epochs: missing" in output
    assert "Traceback" not in output


def test_dvc_yaml_names_every_knob_of_training(repository):
    """`train` lists its keys one by one, so that `seeds` is not among them; a new key must not be forgotten."""
    from regbench import params

    listed = yaml.safe_load(repository.read("dvc.yaml"))["stages"]["train"]["params"]
    assert {key for key in listed if key.startswith("train.")} == {
        f"train.{key}" for key in params.Train.model_fields if key != "seeds"
    }
