"""`make check` and `make pr-report` in one scratch repository, a commit for each kind of change, in order."""

import pytest
from conftest import Repository, copy_project, tiny_params

from regbench import review


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    """none and l2, trained and committed on main, and a branch for changes."""
    changes = {"data.train_images": 80, "data.validation_images": 40, "data.test_images": 40, "model.width": 0.35}
    params = tiny_params(image_folder, **changes, **{"evaluate.pruning": [0.5]})
    params["reg"] = {"none": 0, "l2": 0.001}
    repository = copy_project(tmp_path_factory.mktemp("scratch") / "project", params)
    repository.dvc("repro", "-q")
    repository.commit("results")
    repository.run("git", "switch", "-qc", "change")
    return repository


def check(repository):
    """What `make check` says, and whether it fails."""
    output = repository.run("env", "PYTHONPATH=src", "python", "-m", "regbench.review", "check", check=False)
    assert "Traceback" not in output
    return output, repository.returncode


def report(repository, base="main", **options):
    return repository.run("env", "PYTHONPATH=src", "python", "-m", "regbench.review", "report", base, **options)


def section(text, title):
    return text.split(f"### {title}\n")[1].split("###")[0]


def test_nothing_changed(repository):
    assert check(repository) == ("The committed results are those of params.yaml and the code.\n", 0)
    text = report(repository)
    assert section(text, "Parameters").strip() == section(text, "Runs").strip() == "None."
    assert section(text, "Test accuracy").count("the same") == 2
    assert "Stale" not in text and "Figures" not in text


def test_base_that_is_not_there(repository):
    output = report(repository, "origin/nowhere", check=False)
    assert repository.returncode == 1
    assert "error: there is no commit origin/nowhere here; run `git fetch origin`" in output


def test_params_changed_but_not_run(repository):
    path = repository.folder / "params.yaml"
    before = path.read_text()
    path.write_text(before.replace("l2: 0.001", "l2: 0.5"))
    output, code = check(repository)
    assert code == 1
    assert "train@l2-0: reg.l2 modified" in output and "train@none-0" not in output
    assert "Run `make repro`, and commit" in output
    text = report(repository)
    assert "> **Stale**" in text and "| reg.l2 | `0.001` | `0.5` |" in text
    path.write_text(before)


def test_code_changed_but_not_run(repository):
    path = repository.folder / "src/regbench/training.py"
    before = path.read_text()
    path.write_text(before + "# a change\n")
    output, code = check(repository)
    assert code == 1
    assert "train@none-0: src/regbench/training.py modified" in output
    path.unlink()
    output, code = check(repository)
    assert code == 1
    assert "train@none-0: src/regbench/training.py deleted" in output
    path.write_text(before)
    assert check(repository)[1] == 0


def test_trained_but_not_reported(repository):
    path = repository.folder / "params.yaml"
    path.write_text(path.read_text().replace("l2: 0.001", "l2: 0.5"))
    repository.dvc("repro", "-q", "-s", "train@l2-0", "evaluate@l2-0")
    output, code = check(repository)
    assert code == 1
    assert "report: made of another runs/l2-0/evaluation.json than dvc.lock has" in output


def test_numbers_edited_by_hand(repository):
    repository.dvc("repro", "-q")
    assert check(repository)[1] == 0
    path = repository.folder / "metrics/summary.json"
    before = path.read_text()
    path.write_text(before.replace('"seeds": 1', '"seeds": 5'))
    output, code = check(repository)
    assert code == 1 and "report: metrics/summary.json modified" in output
    path.write_text(before)


def test_strength_changed(repository):
    repository.commit("l2: 0.5")
    text = report(repository)
    assert "| reg.l2 | `0.001` | `0.5` |" in section(text, "Parameters")
    assert section(text, "Runs").strip() == "- changed: l2-0"
    rows = section(text, "Test accuracy").splitlines()
    assert "the same" in next(row for row in rows if row.startswith("| none |"))
    changed = next(row for row in rows if row.startswith("| l2 |"))
    assert any(f"| {word} |" in changed for word in ("better", "worse", "can't tell"))
    assert "| l2 | reg_loss |" in section(text, "Other metrics")
    assert "![plots/reg_loss.png](plots/reg_loss.png)" in section(text, "Figures that changed")


def test_regularizers_come_and_go(repository):
    path = repository.folder / "params.yaml"
    text = (
        path.read_text().replace("  l2: 0.5", "  l1: 0.01").replace("regularize_head:\n  - l2", "regularize_head: []")
    )
    path.write_text(text)
    repository.dvc("repro", "-q")
    repository.commit("l1 for l2")
    text = report(repository)
    assert section(text, "Runs").strip() == "- new: l1-0\n- gone: l2-0"
    assert "| l1 | – |" in text and "| new |" in text and "| gone |" in text
    assert check(repository)[1] == 0


def test_clone_without_a_cache(repository, tmp_path):
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    assert check(clone) == ("The committed results are those of params.yaml and the code.\n", 0)
    text = report(clone, "origin/main")
    assert section(text, "Runs").strip() == "- new: l1-0\n- gone: l2-0"
    images = "https://example.org/raw/"
    output = clone.run(
        "env", "PYTHONPATH=src", "python", "-m", "regbench.review", "report", "origin/main", "--images", images
    )
    assert f"![plots/reg_loss.png]({images}plots/reg_loss.png)" in output
    (clone.folder / "params.yaml").write_text(clone.read("params.yaml").replace("near_zero: 0.001", "near_zero: 0.002"))
    output, code = check(clone)
    assert code == 1 and "evaluate@none-0: evaluate modified" in output


def test_a_change_is_told_by_its_interval():
    row = {"test_accuracy": 0.5, "test_accuracy_low": 0.49, "test_accuracy_high": 0.51, "seeds": 1}
    better = {"test_accuracy": 0.53, "test_accuracy_low": 0.52, "test_accuracy_high": 0.54, "seeds": 1}
    assert review._compare(row, better) == ("+3.0 [+1.6, +4.4]", "better")
    assert review._compare(better, row) == ("−3.0 [−4.4, −1.6]", "worse")
    close = row | {"test_accuracy": 0.505, "test_accuracy_low": 0.495, "test_accuracy_high": 0.515}
    assert review._compare(row, close)[1] == "can't tell"
