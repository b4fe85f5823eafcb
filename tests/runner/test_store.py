"""Results in DVC's cache or a remote store are taken from there. `regbench push` sends everything a clone needs."""

import shutil

import pytest
from scratch import stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc]
COSTLY = ("prepare", "train@", "evaluate@")


def add_remote(repository, folder, *options):
    repository.dvc("remote", "add", "--default", *options, "store", str(folder))


def trained(output):
    """The stages that a command ran, without the quick ones, plan and report."""
    return {stage for stage in stages_run(output) if stage.startswith(COSTLY)}


def test_a_clone_pulls_the_results_of_its_commit(done, clone, tmp_path):
    add_remote(done, tmp_path / "remote")
    done.commit("a remote")
    done.dvc("push")
    other = clone(done)
    output = other.regbench("repro")
    assert stages_run(output) == ["plan"]
    assert 'Looking for results in the remote store "store"' in output
    assert "2 runs were pulled from the remote store; none was trained" in output
    assert "Everything is up to date." in other.regbench("repro")
    assert other.run("git", "status", "--porcelain") == ""


def test_a_clone_pulls_a_state_that_no_commit_holds(done, clone, tmp_path):
    add_remote(done, tmp_path / "remote")
    done.commit("a remote")
    done.dvc("exp", "run", "-S", "reg.l2=0.02")
    done.run("git", "checkout", "-q", ".")
    done.dvc("checkout")
    sent = done.regbench("push")
    assert "1 commit has results." in sent and "were sent" in sent
    other = clone(done)
    other.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    output = other.regbench("repro")
    assert trained(output) == set() and "none was trained" in output
    assert "0.02" in other.read("runs/l2-0/model.keras")


def test_what_the_remote_store_lacks_is_trained(done, clone, tmp_path):
    add_remote(done, tmp_path / "remote")
    done.commit("a remote")
    done.dvc("push")
    other = clone(done)
    other.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    output = other.regbench("repro")
    assert "1 run was pulled from the remote store\n" in output and "1 run to train" in output
    assert trained(output) == {"train@l2-0", "evaluate@l2-0"}


def test_going_back_takes_results_from_the_cache(done):
    done.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    assert trained(done.regbench("repro")) == {"train@l2-0", "evaluate@l2-0"}
    done.replace("params.yaml", "l2: 0.02", "l2: 0.01")
    output = done.regbench("repro")
    assert trained(output) == set()
    assert "1 run was taken from DVC's cache; none was trained" in output
    assert "remote" not in output
    assert done.run("git", "status", "--porcelain") == ""


def test_a_lock_of_another_machine_whose_results_are_nowhere(done):
    """As after `git checkout .` if the committed results were made on another make of processor."""
    done.forget_outputs("none-0")
    output = done.regbench("repro")
    assert trained(output) == set() and "1 run was taken from DVC's cache; none was trained" in output
    assert "Everything is up to date." in done.regbench("repro")


def test_an_evaluation_of_another_model_is_not_taken(done):
    """The old model is in the place of the missing one, and the old model's evaluation is in the cache."""
    done.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    done.regbench("repro", check=False, STUB_FAILED="l2-0")
    assert done.returncode == 1
    assert trained(done.regbench("repro")) == {"train@l2-0", "evaluate@l2-0"}
    assert "0.02" in done.read("runs/l2-0/evaluation/evaluation.json")


def test_a_remote_store_that_can_not_be_read_stops_nothing(stub):
    add_remote(stub, "s3://bucket/regbench")
    output = stub.regbench("repro")
    assert "requires 'dvc-s3' to be installed" in output
    assert output.count("can't be read, as said above. Going on without it") == 1
    assert "Traceback" not in output and "2 runs to train" in output


def test_a_new_remote_store_is_empty(stub, tmp_path):
    add_remote(stub, tmp_path / "new")
    output = stub.regbench("repro")
    said = f"{tmp_path / 'new'} holds nothing: nothing was pushed to it yet, or it is not mounted"
    assert output.count(said) == 1 and "WARNING" not in output
    assert "2 runs to train" in output and "pulled" not in output


def test_a_clone_at_a_commit_older_than_the_remote_trains_nothing(done, clone, tmp_path):
    old = done.run("git", "rev-parse", "HEAD").strip()
    done.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    done.regbench("repro")
    done.commit("l2: 0.02")
    add_remote(done, tmp_path / "remote")
    done.commit("a remote")
    # `dvc push` records in DVC's site cache what it has sent. Here the remote store has lost these files.
    done.dvc("push", "--all-commits", "--run-cache")
    shutil.rmtree(tmp_path / "remote")
    done.regbench("push")
    for number, commit in enumerate((old, "main~1", "main")):
        other = clone(done, commit, f"clone {number}")
        if commit != "main":
            add_remote(other, tmp_path / "remote", "--local")
        output = other.regbench("repro")
        assert trained(output) == set() and "2 runs were pulled from the remote store; none was trained" in output
    assert done.regbench("push").startswith("2 commits have results. 0 files")


def test_push_says_what_is_lost_and_needs_a_remote_store(done, tmp_path):
    output = done.regbench("push", check=False)
    assert done.returncode == 1 and "error: there is no remote store to send to" in output
    shutil.rmtree(done.folder / ".dvc/cache")
    add_remote(done, tmp_path / "remote")
    output = done.regbench("push")
    assert "0 files that" in output and "files of older states are neither in DVC's cache nor in" in output
