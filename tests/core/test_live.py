"""What a training reports while it runs: printed lines, the log, and the views of other programs."""

import importlib
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import scratch

from regbench import live, params
from regbench.errors import UserError

EPOCH = live.Epoch(
    "l2-0",
    3,
    6,
    cross_entropy=1.2345,
    reg_loss=0.5,
    accuracy=0.444,
    val_cross_entropy=1.3,
    val_accuracy=0.45,
    images_per_second=1686,
    left=3723,
)


def row(epoch, **others):
    return {"epoch": epoch} | dict.fromkeys(live.MEASURES, epoch / 10) | others


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_line_is_read_back():
    assert str(EPOCH).endswith("accuracy 45.0%; 1,686 images/s, 1:02:03 left")
    assert live.parse(f"{EPOCH}\n") == EPOCH
    assert live.parse("l2-0 epoch 1/1; runs beside it: 2") is None
    assert live.says_diverged(live.diverged("l2-0", math.inf, 2)) and not live.says_diverged(str(EPOCH))


@pytest.mark.parametrize(("seconds", "words"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3600, "1:00:00")])
def test_clock(seconds, words):
    assert live.clock(seconds) == words


def test_the_log_of_a_new_training_begins_empty_and_grows():
    live.Log("l2-0", [row(1), row(2)]).close()
    log = live.Log("l2-0")
    assert live.read("l2-0") == []
    log.add(row(1, seconds=2.5))
    (found,) = live.read("l2-0")
    assert (found["epoch"], found["seconds"], found["reg_loss"]) == (1, 2.5, 0.1)
    assert math.isnan(found["images_per_second"])


def test_the_log_of_a_resumed_training_has_each_epoch_once_and_keeps_its_seconds():
    log = live.Log("l2-0")
    for epoch in (1, 2, 3):
        log.add(row(epoch, seconds=epoch))
    log.close()
    live.Log("l2-0", [row(1), row(2)]).add(row(3, seconds=9))
    assert [(it["epoch"], it["seconds"]) for it in live.read("l2-0")] == [(1, 1), (2, 2), (3, 9)]


def test_a_half_written_or_damaged_log(folder):
    live.Log("l2-0").add(row(1))
    with open(live.LOG / "l2-0.csv", "a") as file:
        file.write("what is this\n2,0.5,3")
    assert [it["epoch"] for it in live.read("l2-0")] == [1]
    (live.LOG / "l2-0.csv").write_bytes(b"\xff\xfe")
    assert live.read("l2-0") == live.read("none-0") == []


@pytest.mark.skipif(live.fcntl is None, reason="this system has no locks on files")
def test_whether_a_run_is_being_trained(folder):
    code = "import sys; from regbench import live; log = live.Log('l2-0'); print(flush=True); sys.stdin.read()"
    command = (sys.executable, "-c", code)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=scratch.Repository(scratch.ROOT).environment()
    ) as training:
        training.stdout.readline()
        assert live.training("l2-0") and not live.training("none-0")
        training.kill()
    assert not live.training("l2-0")


def write_params(**chosen):
    committed = (scratch.ROOT / "params.yaml").read_text().partition("# Other programs' views")[0]
    Path("params.yaml").write_text(f"{committed}live: {json.dumps(chosen)}\n")


def test_which_views_are_wanted(monkeypatch):
    assert live.wanted() == []
    write_params(tensorboard=True)
    assert live.wanted() == ["tensorboard"]
    monkeypatch.setenv("REGBENCH_LIVE", "off")
    assert live.wanted() == []


def test_committed_params_want_none():
    assert params.load(scratch.ROOT / "params.yaml").live == params.Live()


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=r"live\.dvclive: the package dvclive is not installed; `.venv/bin/pip install -e"
    ):
        live.require(["dvclive"])
    live.require([])


@pytest.mark.slow
def test_tensorboard_shows_every_epoch_once():
    pytest.importorskip("tensorboard", reason="pip install -e '.[live]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_params(tensorboard=True)
    log = live.Log("l2-0")
    log.add(row(1))
    log.add(row(2))
    resumed = live.Log("l2-0", [row(1)])
    resumed.add(row(2))
    resumed.add({"epoch": 3})  # diverged
    resumed.close()
    events = EventAccumulator(str(live.TENSORBOARD / "l2-0"))
    events.Reload()
    assert set(events.Tags()["tensors"]) == set(live.MEASURES)
    assert [it.step for it in events.Tensors("reg_loss")] == [1, 2]


@pytest.mark.slow
@pytest.mark.dvc
def test_dvclive_writes_what_dvc_reads_and_no_experiment(tmp_path):
    pytest.importorskip("dvclive", reason="pip install -e '.[live]'")
    repository = scratch.Repository(tmp_path)
    repository.run("git", "init", "-q")
    repository.dvc("init", "-q")
    shutil.copy(scratch.ROOT / ".gitignore", tmp_path)  # DVC does not see what Git ignores
    repository.commit("a project")
    write_params(dvclive=True)
    code = (
        "from regbench import live; log = live.Log('l2-0', [dict.fromkeys(live.MEASURES, 0.1) | {'epoch': 1}])\n"
        "log.add(dict.fromkeys(live.MEASURES, 0.25) | {'epoch': 2}); log.close()"
    )
    for _ in range(2):  # the second training discards the files of the first
        repository.run(sys.executable, "-c", code, PYTHONPATH=str(scratch.ROOT / "src"))
    assert json.loads(repository.read("dvclive/l2-0/metrics.json"))["val_accuracy"] == 0.25
    assert repository.read("dvclive/l2-0/plots/metrics/reg_loss.tsv").split() == [
        "step",
        "reg_loss",
        "1",
        "0.1",
        "2",
        "0.25",
    ]
    assert "val_accuracy" in repository.dvc("metrics", "show")
    assert not repository.run("git", "for-each-ref", "refs/exps")
    assert not (tmp_path / "dvc.yaml").exists()
