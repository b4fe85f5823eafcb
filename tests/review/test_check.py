"""`regbench check`: are the committed results those of the committed params and code?"""

import shutil
import subprocess

import pytest
import scratch

from regbench.errors import UserError
from regbench.params import ParamsError
from regbench.review import blocks, check

pytestmark = [pytest.mark.slow, pytest.mark.dvc]

RESULTS = (
    "metrics/summary.json",
    *(f"plots/{name}.png" for name in ("accuracy", "layers", "learning_curves", "norms")),
    "plots/curves.csv",
    "report.json",
    "report.md",
)


def command(repository):
    """Run `regbench check` with the repository's own code. Returns (output, exit code)."""
    output = repository.run("python", "-m", "regbench", "check", check=False)
    assert "Traceback" not in output
    return output, repository.returncode


def test_current(repository):
    assert check.check() == []
    assert command(repository) == ("The committed results are those of params.yaml and the code.\n", 0)


def test_a_clone_without_a_cache(repository, tmp_path, monkeypatch):
    repository.run("git", "clone", "-q", str(repository.folder), str(tmp_path / "clone"))
    monkeypatch.chdir(tmp_path / "clone")
    assert check.check() == []


def test_results_that_are_not_committed(repository):
    repository.replace("params.yaml", "l2: 0.001", "l2: 0.5")
    repository.write("benchmarks/results.json", '{"kinds": {"l2": {"step": {"median": 1.1}}}}')
    repository.make(test=lambda place, seed: 220 + 30 * place)
    found = check.check()
    assert all(line.startswith("not committed: ") for line in found)
    named = {line.removeprefix("not committed: ") for line in found}
    expected = {"params.yaml", "benchmarks/results.json", "dvc.lock", *RESULTS}
    assert named >= expected - {"plots/norms.png", "plots/layers.png"}
    assert command(repository)[0].endswith("Commit these files.\n")
    repository.run("git", "add", "--all")
    assert check.check() == found
    repository.commit("l2: 0.5")
    assert check.check() == []


def test_tables_that_are_not_committed(repository):
    """In a clone of the commit, the tables would be stale."""
    page = "<!-- results -->\n<!-- /results -->\n"
    (repository.folder / "docs").mkdir()
    repository.write("docs/own.md", page)
    repository.write("docs/text.md", "no table\n")
    blocks.fill()
    repository.commit("a page with a table")
    assert check.check() == []
    repository.write("docs/text.md", "another text\n")
    repository.replace("docs/own.md", "<!-- results", "A word more.\n<!-- results")
    assert check.check() == []
    repository.replace("params.yaml", "l2: 0.001", "l2: 0.5")
    repository.make(test=lambda place, seed: 220 + 30 * place)
    blocks.fill()
    repository.run("git", "add", "params.yaml", "dvc.lock", "report.md", "report.json", "metrics", "plots")
    repository.run("git", "commit", "-qm", "not the tables")
    assert check.check() == ["not committed: docs/own.md", "not committed: docs/results.json"]
    repository.commit("the tables")
    assert check.check() == []


def test_results_that_were_never_committed(repository):
    repository.run("git", "rm", "-q", "--cached", "report.json", "plots/norms.png")
    repository.run("git", "commit", "-qm", "some are missing")
    assert check.check() == ["not committed: plots/norms.png", "not committed: report.json"]


def test_params_changed_but_not_run(repository):
    repository.replace("params.yaml", "l2: 0.001", "l2: 0.5")
    repository.commit("l2: 0.5")
    found = check.check()
    assert found[:3] == [
        "train@l2-0: its plan has changed since it ran (plans/l2-0/train.json)",
        "evaluate@l2-0: its plan has changed since it ran (plans/l2-0/evaluate.json)",
        "report: its plan has changed since it ran (plans/report.json)",
    ]
    assert found[3].startswith("changed since dvc.lock was committed (") and found[3].endswith("): reg.l2")
    assert len(found) == 4
    with pytest.raises(UserError, match=r"Run `make repro`, and commit params.yaml, dvc.lock"):
        check.verify()


def test_another_seed_and_regularizer(repository):
    repository.replace("params.yaml", "seeds:\n- 0", "seeds:\n- 0\n- 1")
    found = check.check()
    assert {"train@none-1: has not run", "evaluate@l2-1: has not run"} <= {*found}
    assert not any("none-0" in line for line in found if not line.startswith("report"))
    repository.run("git", "checkout", "-q", "params.yaml")
    repository.replace("params.yaml", "  l2: 0.001\n", "")
    assert "report: report.json was made of none-0, l2-0, not of none-0" in check.check()


def test_code_changed(repository):
    path = "src/regbench/training/fit.py"
    text = repository.read(path)
    repository.write(path, "# A comment changes nothing.\n" + text)
    assert command(repository)[1] == 0
    repository.write(path, text + "\nSPARE = 1\n")
    output, code = command(repository)
    assert code == 1
    for run in ("none-0", "l2-0"):
        assert f"  train@{run}: its plan has changed since it ran (plans/{run}/train.json)\n" in output
    assert f"): {path}\n" in output and f"  not committed: {path}\n" in output
    assert "prepare" not in output and "report:" not in output
    repository.commit("code")
    output, code = command(repository)
    assert code == 1 and "not committed" not in output


def test_code_that_results_need_but_nobody_committed(repository):
    repository.write("src/regbench/training/fit.py", repository.read("src/regbench/training/fit.py") + "\nSPARE = 1\n")
    repository.make()
    repository.run("git", "add", "dvc.lock", "report.json", "report.md", "plots", "metrics")
    repository.run("git", "commit", "-qm", "results without their code")
    assert "not committed: src/regbench/training/fit.py" in command(repository)[0]


def test_trained_but_not_reported(repository):
    repository.make(report=False, test=lambda place, seed: 250)
    found = check.check()
    for run in ("none-0", "l2-0"):
        for path in ("history.csv", "evaluation"):
            assert f"report: report.json was made of a different runs/{run}/{path} from the one in dvc.lock" in found


@pytest.mark.parametrize("path", RESULTS)
def test_results_edited_by_hand(repository, path):
    file = repository.folder / path
    file.write_bytes(file.read_bytes().replace(b"0.5", b"0.6") + b"\n")
    repository.commit("better numbers")
    assert (
        f"report: {path} differs from the one in dvc.lock: it was edited, or taken from another commit" in check.check()
    )
    file.unlink()
    assert f"report: {path} is missing" in check.check()


def test_report_and_lock_of_another_commit(repository):
    repository.make("other runs", test=lambda place, seed: 250)
    repository.run("git", "checkout", "-q", "main", "--", "dvc.lock")
    repository.run("git", "commit", "-qm", "dvc.lock of main")
    found = check.check()
    assert "report: report.md differs from the one in dvc.lock: it was edited, or taken from another commit" in found
    assert "report: report.json was made of a different runs/l2-0/evaluation from the one in dvc.lock" in found


def test_a_stage_that_ran_on_another_output_than_dvc_lock_has(repository):
    lock = repository.read("dvc.lock")
    place = lock.index("- path: prepared/test", lock.index("evaluate@l2-0:"))
    md5 = lock.index("md5: ", lock.index("hash: md5", place)) + len("md5: ")
    repository.write("dvc.lock", lock[:md5] + "0123456789abcdef0123456789abcdef" + lock[md5 + 32 :])
    assert "evaluate@l2-0: ran on a different prepared/test from the one in dvc.lock" in check.check()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "exec python stages/train.py",
            "python stages/train.py",
            "train@l2-0: its command in dvc.yaml is not the one that it ran with",
        ),
        (
            "    deps: [plans/prepare.json]",
            "    deps: [plans/prepare.json, images]",
            "prepare: its deps or outs in dvc.yaml are not those that it ran with",
        ),
        (
            '    outs: ["runs/${key}/evaluation"]',
            '    outs: ["runs/${key}/evaluation", "runs/${key}/more"]',
            "evaluate@none-0: its deps or outs in dvc.yaml are not those that it ran with",
        ),
    ],
)
def test_dvc_yaml_changed(repository, old, new, said):
    repository.replace("dvc.yaml", old, new)
    found = check.check()
    assert said in found and "not committed: dvc.yaml" in found


MARKERS = "<<<<<<< HEAD\na: 1\n=======\na: 2\n>>>>>>> other\n"


@pytest.mark.parametrize("path", ["dvc.lock", "params.yaml", "dvc.yaml", *RESULTS[-3:], "metrics/summary.json"])
def test_conflict_markers_are_named_with_the_way_out(repository, path):
    repository.write(path, repository.read(path) + MARKERS)
    output, code = command(repository)
    assert code == 1
    line = repository.read(path)[: -len(MARKERS)].count("\n") + 1
    if path == "params.yaml":
        assert f"merge conflict in line {line}: choose a side" in output
    else:
        assert (
            f"{path} has a merge conflict in line {line}: resolve params.yaml, run `make repro`, and commit" in output
        )


def test_files_that_are_not_there(repository):
    for path, said in (("dvc.lock", "there is no dvc.lock; run `make repro`"), ("params.yaml", "params.yaml")):
        (repository.folder / path).rename(repository.folder / "aside")
        with pytest.raises((UserError, ParamsError), match=said):
            check.check()
        (repository.folder / "aside").rename(repository.folder / path)


def test_outside_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"failed in .*: fatal: not a git repository"):
        check.check()
    subprocess.run(["git", "init", "-q"], check=True)
    with pytest.raises(UserError, match=r"^nothing is committed here yet; run `git add --all` and `git commit`$"):
        check.check()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^Git is not installed, or not on the PATH$"):
        check.check()


def test_results_that_were_trained(trained, tmp_path):
    """Once with real results: before and after they are committed, and compared with the commit before."""
    repository = scratch.Repository(shutil.copytree(trained, tmp_path / "project", symlinks=True))
    assert command(repository)[1] == 0
    report = repository.regbench("pr-report", "HEAD~1")
    assert "l2: new" in report and "there is no report.json of" in report
    repository.run("git", "reset", "-q", "HEAD~1")
    assert "not committed: report.json" in command(repository)[0]
    (repository.folder / "dvc.lock").unlink()
    assert "there is no dvc.lock; run `make repro`" in command(repository)[0]


def test_folders_of_removed_runs_do_not_make_results_stale(repository):
    """The whole folder runs/ is an input of the report; a clone does not have the folders that were left there."""
    shutil.copytree(repository.folder / "runs/l2-0", repository.folder / "runs/old-0")
    assert "old-0" in repository.dvc("repro")
    assert "up to date" in repository.dvc("status")
    assert check.check() == []
    assert (repository.folder / ".regbench/removed/old-0/model.keras").exists()
