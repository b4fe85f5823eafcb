"""`regbench repro` on one machine, under real dvc: runs side by side, and the messages when something is wrong."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
import zc.lockfile
from scratch import simulate_gpu, stages_run

from regbench.errors import UserError
from regbench.runner import local, machine, worker

pytestmark = [pytest.mark.slow, pytest.mark.dvc]
RUNS = ("none-0", "l2-0")
BOTH = {f"{stage}@{run}" for stage in ("train", "evaluate") for run in RUNS}


def test_side_by_side(stub):
    output = stub.regbench("repro", "--jobs", "2")
    assert "2 runs to train, 2 at a time" in output
    assert set(stages_run(output)) == {"plan", "prepare", "report"} | BOTH
    lines = output.splitlines()
    for run in RUNS:
        assert f"{run}: a line without a name" in lines
        assert f"{run} epoch 1/1; runs beside it: 2" in lines
    assert not [line for line in lines if local.CHATTER.fullmatch(line.partition(": ")[2] or line)]
    assert lines[-1] == "THE TABLE"
    assert stub.regbench("repro").splitlines() == ["Everything is up to date.", "THE TABLE"]


def test_runs_that_share_a_gpu_are_told_how_much_of_it_is_theirs(monkeypatch, tmp_path):
    simulate_gpu(tmp_path, "echo 20000")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    told = "import os; print(os.environ.get('REGBENCH_GPU_MIB'))"
    for runs, expected in ((2, "9232\n"), (1, "None\n")):
        with local.Commands(runs) as commands:
            assert commands.run((sys.executable, "-c", told), print) == (0, expected)


def test_a_run_that_would_be_left_over_joins_the_last_round(settings, monkeypatch, capsys):
    begun = []

    class Commands(local.Commands):
        """Runs of equal duration. When each begins, records (how many have ended, how many are running)."""

        def run(self, command, show):
            with self.lock:
                self.running.add(threading.get_ident())
                begun.append((len(begun) + 1 - len(self.running), len(self.running)))
            time.sleep(0.2)
            self.running.discard(threading.get_ident())
            return 0, ""

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(local, "Commands", Commands)
    monkeypatch.setattr(machine, "cpus", lambda: 2)
    local.run_all(settings(), dict.fromkeys(["none-0", "none-1", "none-2", "none-3", "none-4"], "train"), None)
    assert "5 runs to train, 2 at a time, the last 3 together" in capsys.readouterr().out
    assert max(going for ended, going in begun if ended < 2) == 2
    assert max(going for _, going in begun) == 3


def test_one_at_a_time(stub):
    output = stub.regbench("repro", "--jobs", "1")
    assert "2 runs to train\n" in output
    assert "\na line without a name\n" in output and "none-0 epoch 1/1; runs beside it: 1" in output


def test_one_at_a_time_is_what_dvc_repro_gives(stub, done):
    stub.dvc("repro")
    assert yaml.safe_load(stub.read("dvc.lock")) == yaml.safe_load(done.read("dvc.lock"))


def test_tables_are_filled_where_nothing_is_stale(done):
    """As after `dvc exp apply`, which restores results but does not change README.md."""
    done.write("README.md", "<!-- catalogue -->\n<!-- /catalogue -->\n")
    output = done.regbench("repro")
    assert "Everything is up to date.\nwritten: the tables of README.md\n" in output
    assert "### l2" in done.read("README.md")


def test_only_the_report_is_stale(done):
    (done.folder / "report.md").unlink()
    output = done.regbench("repro")
    assert stages_run(output) == ["report"]
    assert "to train" not in output and "Traceback" not in output
    assert done.run("git", "status", "--porcelain") == ""


def test_only_evaluations_are_stale(done):
    done.replace("params.yaml", "near_zero: 0.001", "near_zero: 0.01")
    output = done.regbench("repro")
    assert "2 runs to evaluate" in output and "to train" not in output
    assert set(stages_run(output)) == {"plan", "evaluate@none-0", "evaluate@l2-0"}


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_failing_run_does_not_stop_the_others(stub, jobs):
    output = stub.regbench("repro", "--jobs", jobs, check=False, STUB_FAILED="none-0")
    assert stub.returncode == 1
    assert "error: something is wrong" in output  # the stage's message
    assert "ERROR: failed to reproduce 'train@none-0': failed to run: exec python stages/train.py" in output  # DVC's
    last = "error: 1 of 2 runs failed, as said above: none-0. The other one is kept. `make repro` tries again"
    assert output.splitlines()[-1] == last
    assert set(stages_run(output)) >= BOTH - {"evaluate@none-0"}
    again = stub.regbench("repro")
    assert set(stages_run(again)) == {"train@none-0", "evaluate@none-0", "report"}


@pytest.mark.faults
def test_a_run_that_was_killed_is_named(stub):
    output = stub.regbench("repro", "--jobs", "2", check=False, STUB_KILLED="l2-0")
    assert stub.returncode == 1 and "exited with -9" in output
    hint = "train fewer at a time (`make repro JOBS=1`) or lower train.batch_size"
    assert f"l2-0 was killed, probably because memory ran out: {hint}" in output
    assert "error: 1 of 2 runs failed" in output


def test_bad_params_and_images_in_danger_are_told_before_dvc_is_touched(stub):
    (stub.folder / "dvc.yaml").write_text("stages: [")  # dvc would refuse it
    stub.replace("params.yaml", "\n  epochs: 1\n", "\n  epoch: 1\n")
    assert "train.epoch: unknown key; did you mean epochs?" in stub.regbench("repro", check=False)
    stub.replace("params.yaml", "\n  epoch: 1\n", "\n  epochs: 1\n")
    stub.replace("params.yaml", "dataset: cifar10", "dataset: ./runs")
    (stub.folder / "runs").mkdir()
    assert "DVC would delete the images" in stub.regbench("repro", check=False)


def without_git(repository):
    (repository.folder / ".git").rename(repository.folder.parent / "away")


def with_broken_pipeline(repository):
    repository.write("dvc.yaml", repository.read("dvc.yaml").replace("cmd: exec python stages/plan.py", "cmd:", 1))


def with_broken_config(repository):
    repository.write(".dvc/config", "[core]\nanalytic = false\n")


@pytest.mark.parametrize(
    ("breaks", "words", "ours"),
    [
        (without_git, "not a git repository", "DVC needs a Git repository: get the project with `git clone`"),
        (with_broken_pipeline, "dvc.yaml' validation failed", "error: DVC can't be used here, as it says above"),
        (with_broken_config, "configuration error", "error: DVC can't be used here, as it says above"),
    ],
)
def test_what_dvc_says_is_shown(done, breaks, words, ours):
    breaks(done)
    output = done.regbench("repro", check=False)
    assert done.returncode == 1
    assert words in output and ours in output.splitlines()[-1]
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("project", "ours"),
    [("stub", "`dvc repro prepare` failed, as said above"), ("done", "DVC can't be used here, as it says above")],
)
def test_a_lock_that_is_held(project, ours, request):
    repository = request.getfixturevalue(project)
    (repository.folder / ".dvc/tmp").mkdir(exist_ok=True)
    held = zc.lockfile.LockFile(str(repository.folder / ".dvc/tmp/lock"))
    output = repository.regbench("repro", check=False)
    held.close()
    assert repository.returncode == 1
    assert "Unable to acquire lock" in output
    assert output.splitlines()[-1] == f"error: {ours}"


def test_another_dvc_holds_the_lock_when_a_training_ends(stub):
    """No result is lost, even if one run trains at a time: its DVC waits for the lock."""
    process = stub.start("python", "-m", "regbench", "repro", "--jobs", "1", STUB_SECONDS="2")
    for line in process.stdout:
        if line.startswith("none-0 epoch"):
            break
    held = zc.lockfile.LockFile(str(stub.folder / ".dvc/tmp/lock"))
    time.sleep(8)
    held.close()
    output = process.communicate()[0]
    assert process.returncode == 0, output
    assert "Unable to acquire lock" not in output and "l2-0" in stub.read("dvc.lock")


def test_git_is_not_installed(stub):
    output = stub.regbench("repro", check=False, PATH=str(Path(sys.executable).parent))
    assert stub.returncode == 1 and "Git is not installed, or not on the PATH" in output


def test_a_cache_that_can_not_be_written(stub):
    (stub.folder / "file").write_text("")
    stub.dvc("cache", "dir", "--local", str(stub.folder / "file/cache"))
    output = stub.regbench("repro", check=False)
    assert stub.returncode == 1
    assert "Traceback" not in output and "file/cache" in output.splitlines()[-1]
    assert "to train" not in output


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can act as another user")
def test_a_cache_of_another_user(tmp_path):
    (tmp_path / "cache/files/md5/ab").mkdir(parents=True)
    for folder in (tmp_path, *list(tmp_path.parents)[:-2]):
        folder.chmod(0o755)
    (tmp_path / "cache").chmod(0o777)
    code = (
        "import os, sys; from pathlib import Path; from regbench.runner import local; os.setuid(65534)\n"
        "local.check_writable(Path('/tmp'), Path(sys.argv[1]))"
    )
    command = (sys.executable, "-c", code, str(tmp_path / "cache"))
    done = subprocess.run(
        command, capture_output=True, text=True, env=worker.environment(1, PYTHONPATH=":".join(sys.path))
    )
    assert "DVC's cache can't be written" in done.stderr and "belongs to root" in done.stderr


def test_a_disk_without_room(settings, tmp_path):
    with pytest.raises(UserError, match=r"the disk of .* GB left, and 10000000 runs will need about"):
        local.check_space(settings(**{"model.width": 4.0}), 10**7, tmp_path)


def start(repository, *arguments, **variables):
    """Start `regbench repro` and wait until l2-0 trains. Returns the process and its output so far."""
    process = subprocess.Popen(
        (sys.executable, "-m", "regbench", "repro", *arguments),
        cwd=repository.folder,
        env=repository.environment() | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output = ""
    while "l2-0 epoch" not in output or not output.endswith("a line without a name\n"):
        line = process.stdout.readline()
        assert line, output
        output += line
    return process, output


@pytest.mark.faults
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_ctrl_c(stub, jobs):
    process, _ = start(stub, "--jobs", jobs, STUB_SLOW="l2-0")
    while "evaluate@none-0" not in stub.read("dvc.lock"):
        time.sleep(0.1)
    time.sleep(2)  # until the DVC command of none-0 has ended
    descendants = psutil.Process(process.pid).children(recursive=True)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait() == 130
    assert time.monotonic() - began < 15
    *before, last = rest.splitlines()
    assert last == "interrupted: 1 of 2 runs done and kept. `make repro` continues the others after their last epoch"
    assert all(not line or line.startswith("none-0") for line in before)
    assert descendants and not psutil.wait_procs(descendants, timeout=10)[1]
    # DVC's own records are intact.
    assert set(stages_run(stub.regbench("repro"))) == {"train@l2-0", "evaluate@l2-0", "report"}


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_training_ends_with_the_runner(stub, number):
    process, _ = start(stub, "--jobs", "2", STUB_SLOW="l2-0")
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.stdout.read()
    assert process.wait() != 0
    assert descendants and not psutil.wait_procs(descendants, timeout=20)[1]
    stub.regbench("repro")


def test_environment_of_the_stages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "mine")
    found = worker.environment(3)
    assert found["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert found["PYTHONPATH"] == "mine" and found["REGBENCH_RUNS"] == "3"
