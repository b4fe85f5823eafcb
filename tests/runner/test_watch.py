"""`regbench watch`: the state of each run that the page gets, the server, and the page in a browser."""

import contextlib
import hashlib
import http.client
import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import browser
import pytest
import scratch
import yaml

from regbench import files, live
from regbench.errors import UserError
from regbench.runner import watch

NONE, L1 = (1, 115, 178), (222, 143, 5)
"""The first two colours of the figures."""


def row(epoch, **others):
    numbers = dict.fromkeys(live.MEASURES, 1 / epoch) | {"images_per_second": 1000.0}
    return {"epoch": epoch} | numbers | others


@pytest.fixture
def project(image_folder, tmp_path, monkeypatch):
    """A folder with params and plans of none, l1 and l2, two seeds each, three epochs."""
    monkeypatch.chdir(tmp_path)
    settings = scratch.tiny_params(image_folder, **{"train.epochs": 3, "seeds": [0, 1]})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    for run in ("none", "l1", "l2"):
        for seed in (0, 1):
            files.write_json(f"plans/{run}-{seed}/train.json", {"run": f"{run}-{seed}"})
    return tmp_path


def done(run, rows, current=True):
    """Write a run as if DVC had trained it: on the current plan or, if not `current`, on another one."""
    files.write_csv(
        f"runs/{run}/history.csv", live.COLUMNS, ([it.get(name, "") for name in live.COLUMNS] for it in rows)
    )
    path = f"plans/{run}/train.json"
    md5 = hashlib.md5(Path(path).read_bytes() if current else b"another").hexdigest()
    lock = Path("dvc.lock")
    stages = yaml.safe_load(lock.read_text())["stages"] if lock.exists() else {}
    stages[f"train@{run}"] = {"cmd": "train", "deps": [{"path": path, "md5": md5}]}
    lock.write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def states():
    return {run["run"]: (run["state"], len(run["rows"])) for run in watch.state()["runs"]}


def test_the_state_of_each_run(project):
    assert set(states().values()) == {("waiting", 0)}
    done("none-0", [row(1), row(2), row(3)])
    done("none-1", [row(1), {"epoch": 2}])
    done("l1-0", [row(1), row(2), row(3)], current=False)
    training = live.Log("l1-1")
    training.add(row(1))
    interrupted = live.Log("l2-0", [row(1), row(2)])
    interrupted.close()
    assert states() == {
        "none-0": ("done", 3),
        "none-1": ("diverged", 2),
        "l1-0": ("waiting", 0),  # trained on an earlier plan
        "l1-1": ("training", 1),
        "l2-0": ("interrupted", 2),
        "l2-1": ("waiting", 0),
    }
    assert watch.state()["said"] == "2 of 6 runs done (1 diverged), 2 waiting, 1 training, 1 interrupted"
    training.add(row(2))
    assert states()["l1-1"] == ("training", 2)
    training.close()


def test_numbers_of_the_page_are_json(project):
    done("none-0", [row(1), {"epoch": 2}])
    text = json.dumps(watch.state(), allow_nan=False)
    assert json.loads(text)["runs"][0]["rows"][1]["reg_loss"] is None


@contextlib.contextmanager
def served():
    with watch.serving() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def get(server, path, host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_the_server(project):
    with served() as server:
        assert server.server_address[0] == "127.0.0.1"
        status, page = get(server, "/")
        assert status == 200
        assert set(re.findall(r"https?://[^\s\"'`]+", page)) == {
            "http://www.w3.org/2000/svg",
            "http://www.w3.org/1999/xhtml",
        }
        assert json.loads(get(server, "/runs.json")[1])["names"] == ["none", "l1", "l2"]
        assert get(server, "/../params.yaml")[0] == get(server, "/params.yaml")[0] == 404
        assert get(server, "/runs.json", host="example.org")[0] == 403
        (project / "params.yaml").write_text("data: {")
        assert "not valid YAML" in json.loads(get(server, "/runs.json")[1])["problem"]
        with pytest.raises(UserError, match=r"port \d+ can't be used"), watch.serving(server.server_port):
            pass


@pytest.mark.slow
def test_it_ends_with_ctrl_c(project):
    (project / "dvc.yaml").write_text("stages: {}\n")
    environment = scratch.Repository(scratch.ROOT).environment()
    command = (sys.executable, "-m", "regbench", "watch")
    with subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True) as process:
        address = process.stdout.readline()
        assert re.match(r"http://127\.0\.0\.1:\d+/ shows the curves", address)
        process.send_signal(signal.SIGINT)
        assert "ended" in process.stdout.read()
    assert process.returncode == 0


@browser.needed
@pytest.mark.slow
def test_the_page_draws_itself_anew(project, tmp_path_factory, monkeypatch):
    own = tmp_path_factory.mktemp("chromium")
    told = []
    done("none-0", [row(1), row(2), row(3)])
    done("none-1", [row(1), row(2), row(3)])
    log = live.Log("l1-0")
    log.add(row(1, val_accuracy=0.25))

    def tell(state=watch.state):
        """The state for the page. The second epoch ends after the page has first asked."""
        told.append(state())
        if len(told) == 1:
            log.add(row(2, val_accuracy=0.375))
        return told[-1]

    monkeypatch.setattr(watch, "state", tell)
    with served() as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        page = browser.chromium(url, own, "--dump-dom")
        browser.chromium(url, own, f"--screenshot={project / 'page.png'}")
    assert "2 of 6 runs done, 1 training, 3 waiting" in page
    assert "37.5 %" in page and "25.0 %" not in page
    assert page.count("<svg") == 4
    drawn = browser.colours(project / "page.png")
    assert drawn.get(NONE, 0) > 1000 and drawn.get(L1, 0) > 100
