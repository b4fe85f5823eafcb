"""A dvc.lock that DVC refuses: cut off by a kill, damaged, or in conflict after a merge. Nothing is trained again."""

import json
import os
import shutil
import subprocess
import time

import psutil
import pytest
import yaml
from scratch import Repository, stages_run

pytestmark = [pytest.mark.slow, pytest.mark.dvc]
COSTLY = ("prepare", "train@", "evaluate@")


def trained(output):
    """The stages that a command ran, without the quick ones, plan and report."""
    return {stage for stage in stages_run(output) if stage.startswith(COSTLY)}


@pytest.mark.faults
@pytest.mark.parametrize("end", [0, 0.33, 0.77, -9])
def test_cut_off(done, end):
    whole = done.read("dvc.lock")
    done.write("dvc.lock", whole[: int(end * len(whole)) if 0 < abs(end) < 1 else end])
    output = done.regbench("repro")
    assert trained(output) == set()
    assert yaml.safe_load(done.read("dvc.lock")) == yaml.safe_load(whole)


@pytest.mark.parametrize(
    "damage", ["schema: '1.0'\nstages: {}\n", "- a list\n", "stages:\n\ttab: 1\n", "stages: {a: 1}\n", "\0"]
)
def test_what_dvc_refuses_is_mended(done, damage):
    whole = done.read("dvc.lock")
    done.write("dvc.lock", damage)
    expected = "dvc.lock is damaged; took the one of this branch's last commit instead\n"
    assert done.regbench("mend") == expected
    assert done.read("dvc.lock") == whole
    assert done.regbench("mend") == "There is nothing to mend.\n"


def test_results_that_were_not_committed_come_from_the_run_cache(stub):
    """dvc.lock is cut off before any results were committed."""
    stub.regbench("repro")
    stub.write("dvc.lock", stub.read("dvc.lock").partition("deps:")[0] + "deps:")
    output = stub.regbench("repro")
    assert "dvc.lock is damaged; deleted it" in output
    assert trained(output) == set() and "2 runs were taken from DVC's cache; none was trained" in output


def test_rwlock(done):
    done.write(".dvc/tmp/rwlock", '{"read": {')
    assert "rwlock is damaged; deleted it" in done.regbench("repro")
    assert done.regbench("mend") == "There is nothing to mend.\n"


@pytest.mark.parametrize("text", ["[]", '{"write": 1}', '{"write": {"/x": {"pid": "?"}}}'])
def test_rwlock_of_another_shape(done, text):
    done.write(".dvc/tmp/rwlock", text)
    assert ".dvc/tmp/rwlock is damaged; deleted it" in done.regbench("mend")


def test_a_killed_process_holds_nothing(done):
    """The process is a zombie: this test is its parent and does not collect its exit code."""
    killed = subprocess.Popen(("sleep", "60"))
    killed.kill()
    while psutil.Process(killed.pid).status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.01)
    ended, alive = ({"pid": pid, "cmd": "dvc repro"} for pid in (killed.pid, os.getpid()))
    plans, elsewhere = str(done.folder / "plans"), str(done.folder / "elsewhere")
    done.write(".dvc/tmp/rwlock", json.dumps({"write": {plans: ended, elsewhere: alive}, "read": {plans: [ended]}}))
    held = f"'{plans}' is busy"
    assert held in done.dvc("repro", "--force", "plan", check=False)
    assert done.regbench("mend") == "There is nothing to mend.\n"
    assert json.loads(done.read(".dvc/tmp/rwlock")) == {"write": {elsewhere: alive}, "read": {}}
    done.dvc("repro", "--force", "plan")
    killed.wait()


def two_branches(repository):
    """Make two branches with different results and merge `other` into `main`. Returns Git's output."""
    repository.run("git", "checkout", "-q", "-b", "other")
    repository.replace("params.yaml", "none: 0", "none: 0\n  l1: 0.001")
    repository.regbench("repro")
    repository.commit("l1")
    repository.run("git", "checkout", "-q", "main")
    repository.dvc("checkout")
    repository.replace("params.yaml", "l2: 0.01", "l2: 0.02")
    repository.regbench("repro")
    repository.commit("l2: 0.02")
    return repository.run("git", "merge", "other", check=False)


@pytest.mark.parametrize("with_markers", [False, True])
def test_a_merge_of_two_result_branches(done, with_markers):
    """The way out: resolve params.yaml, `make repro`, commit."""
    if with_markers:  # a repository without our .gitattributes
        done.run("git", "rm", "-q", ".gitattributes")
        done.commit("no attributes")
    output = two_branches(done)
    assert "CONFLICT (content): Merge conflict in dvc.lock" in output
    assert ("<<<<<<<" in done.read("dvc.lock")) == with_markers
    assert "<<<<<<<" in done.read("params.yaml")
    output = done.regbench("repro", check=False)
    assert done.returncode == 1 and "merge conflict in line" in output
    resolved = [
        line for line in done.read("params.yaml").splitlines() if line[:7] not in ("<<<<<<<", "=======", ">>>>>>>")
    ]
    resolved.remove("  l2: 0.01")
    done.write("params.yaml", "\n".join(resolved) + "\n")

    output = done.regbench("repro")
    assert (
        "dvc.lock has a merge conflict; took the one of this branch's last commit instead" in output
    ) == with_markers
    assert trained(output) == set() and "1 run was taken from DVC's cache; none was trained" in output
    done.commit("merged")
    assert "Everything is up to date." in done.regbench("repro")
    assert "<<<<<<<" not in done.run("git", "show", "HEAD")
    assert "0.001" in done.read("runs/l1-0/model.keras") and "0.02" in done.read("runs/l2-0/model.keras")


def test_a_clone_with_windows_line_ends_is_up_to_date(done):
    done.run("git", "config", "core.autocrlf", "true")
    other = done.folder.parent / "clone"
    done.run("git", "clone", "-q", "-c", "core.autocrlf=true", str(done.folder), str(other))
    crlf = [path for path in other.rglob("*") if path.is_file() and ".git" not in path.parts and path.suffix != ".png"]
    assert len(crlf) > 50 and not [path for path in crlf if b"\r\n" in path.read_bytes()]
    shutil.copytree(done.folder / ".dvc/cache", other / ".dvc/cache")
    assert "; none was trained" in Repository(other).regbench("repro")
