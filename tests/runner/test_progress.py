"""What the user sees while runs train: the time left, the table at 80 columns, lines if there is no terminal."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios

import pytest
from rich.console import Console

from regbench.live import Epoch, diverged
from regbench.runner.progress import Lines, Progress


def line(run, epoch, epochs=6, left=0.0, **others):
    numbers = {"cross_entropy": 1.5, "reg_loss": 0.25, "accuracy": 0.4, "val_cross_entropy": 1.6, "val_accuracy": 0.5}
    return str(Epoch(run, epoch, epochs, **numbers | others, images_per_second=1234, left=left))


@pytest.fixture
def now():
    """A clock to set: a list of one number, seconds."""
    return [0.0]


@pytest.fixture
def progress(now):
    """A function of names of runs that returns their `Progress`, with six epochs each."""

    def make(*runs, evaluate=(), at_a_time=1):
        missing = dict.fromkeys(runs, "train") | dict.fromkeys(evaluate, "evaluate")
        return Progress(missing, epochs=6, at_a_time=at_a_time, now=lambda: now[0])

    return make


def drawn(progress, width=80, height=24):
    console = Console(width=width, height=height, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(progress.table(width, height))
    return capture.get().splitlines()


def test_time_left(progress, now):
    two = progress("l2-0", "l2-1", "l2-2")
    assert two.left_of_all() is None
    two.begin("l2-0")
    now[0] = 15  # 5 s until training starts, and 10 s an epoch
    two.hear("l2-0", line("l2-0", 1, left=50))
    assert two.left(two.runs["l2-0"]) == 50
    assert two.left_of_all() == 50 + 2 * (5 + 60)
    now[0] = 19
    assert two.left(two.runs["l2-0"]) == 46
    now[0] = 65
    two.hear("l2-0", line("l2-0", 6))
    two.hear("l2-0", "Running stage 'evaluate@l2-0':")
    assert two.runs["l2-0"].state == "evaluates"
    now[0] = 70  # 5 s of evaluation
    two.end("l2-0", failed=False)
    assert two.left_of_all() == 2 * (5 + 60 + 5)
    assert two.counts() == "1 of 3 runs done, 2 waiting; about 2:20 left"


def test_time_left_of_runs_side_by_side(progress):
    three = progress("l2-0", "l2-1", "l2-2", at_a_time=2)
    for run, left in (("l2-0", 50), ("l2-1", 50)):
        three.begin(run)
        three.hear(run, line(run, 1, left=left))
    assert three.left_of_all() == 50 + 60  # the third run waits for one of the first two


def test_evaluations_and_runs_that_diverge(progress, now):
    some = progress("l1-0", evaluate=["l2-0"])
    some.begin("l1-0")
    some.hear("l1-0", diverged("l1-0", float("inf"), 2))
    some.end("l1-0", failed=False)
    some.begin("l2-0")
    assert some.left_of_all() == 0
    assert some.runs["l1-0"].state == "diverged"
    assert some.counts() == "1 of 2 runs done, 1 running"


def test_a_run_that_lost_its_node_begins_again(progress):
    one = progress("l2-0")
    assert one.begin("l2-0", "first") == 1
    one.hear("l2-0", line("l2-0", 5, left=10))
    one.lose(["l2-0"])
    assert one.counts() == "0 of 1 runs done, 1 waiting; about 1:00 left"
    assert one.begin("l2-0", "second") == 1
    one.end("l2-0", failed=True)
    assert one.counts() == "0 of 1 runs done, 1 failed"
    one.hear("l2-0", line("l2-0", 6))
    assert one.runs["l2-0"].state == "failed"


def test_the_table_has_80_columns(progress):
    long = "a_name_of_forty_characters_of_a_regulari-0"
    some = progress("l2-0", long, "none-0")
    for run in ("l2-0", long):
        some.begin(run)
        some.hear(run, line(run, 1, left=45_296, reg_loss=123_456.7))
    rows = drawn(some)
    assert max(map(len, rows)) <= 80
    table = "\n".join(rows)
    for heading in ("run", "state", "epoch", "entropy", "loss", "acc. %", "images/s", "left"):
        assert heading in table
    assert "…" not in "\n".join(rows[:3])
    assert rows[3].split() == ["l2-0", "trains", "1/6", "1.5000", "1.23e+05", "50.0", "1,234", "12:34:56"]
    assert " ".join(rows[-1:]).startswith("0 of 3 runs done, 2 running, 1 waiting; about ")


def test_a_table_that_is_higher_than_the_terminal(progress):
    many = progress(*(f"l2-{seed}" for seed in range(40)))
    many.begin("l2-0")
    many.hear("l2-0", line("l2-0", 6))
    many.end("l2-0", failed=False)
    many.begin("l2-30")
    rows = drawn(many, height=12)
    assert len(rows) <= 12
    assert [row.split()[0] for row in rows[3:-1]][:2] == ["l2-0", "l2-1"] and any("l2-30" in row for row in rows)
    assert "(34 runs are not shown)" in " ".join(rows[-2:])


def test_nodes_have_a_column_in_a_wide_terminal(progress):
    one = progress("l2-0")
    one.begin("l2-0", "host/123456")
    assert any("host/123456" in row for row in drawn(one, width=120))
    assert not any("host/123456" in row for row in drawn(one))


def test_lines(progress, capsys):
    lines = Lines(progress("none-0", "l2-0", at_a_time=2))
    for run in ("none-0", "l2-0"):
        lines.begin(run)
        lines.line(run, "TensorFlow can't use the GPU of this machine")
        lines.line(run, line(run, 1, left=50))
    lines.line("l2-0", "what a stage says")
    lines.end("none-0", failed=False)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "none-0: run 1 of 2" and said[3] == "l2-0: run 2 of 2"
    assert said[2] == f"{line('none-0', 1, left=50)}, 1:00 of all"  # the other run has not begun
    assert sum("TensorFlow" in text for text in said) == 1
    assert said[-2:] == ["l2-0: what a stage says", "none-0: done (1 of 2 runs done, 1 running; about 0:50 left)"]


# On a terminal


class Terminal:
    """A program in a terminal of 80 columns and 24 lines."""

    def __init__(self, command, folder, environment):
        self.mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        kept = {name: value for name, value in environment.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=kept | {"TERM": "xterm-256color"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        self.output = ""

    def read(self, until=None):
        """Read until the words `until` are printed, or to the end. Returns everything printed so far."""
        with contextlib.suppress(OSError):  # Linux's way to say that the other end is closed
            while piece := os.read(self.mine, 65536):
                self.output += piece.decode(errors="replace")
                if until and until in self.output:
                    break
        return self.output


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "")


EPOCHS = """
from regbench import live

numbers = dict(cross_entropy=1.5, reg_loss=0.25, accuracy=0.4, val_cross_entropy=1.6, val_accuracy=0.5)
print(live.Epoch(run, 1, 2, **numbers, images_per_second=1234, left=3), flush=True)
time.sleep(1)
"""


@pytest.fixture
def talking(stub):
    """The stub project; each training prints the line of one epoch as a real one does, and takes a second longer."""
    stub.replace("stages/train.py", 'print("a line without a name", flush=True)\n', EPOCHS)
    return stub


def repro(repository, *arguments, **variables):
    command = (sys.executable, "-m", "regbench", "repro", *arguments)
    return Terminal(command, repository.folder, repository.environment() | variables)


@pytest.mark.slow
@pytest.mark.dvc
def test_on_a_terminal_a_table_and_above_it_what_dvc_says(talking):
    terminal = repro(talking, "--jobs", "2", STUB_FAILED="l2-0")
    text = without_colours(terminal.read())
    assert terminal.process.wait() == 1
    last = text[text.rindex("images/s") :]
    assert re.search(r"none-0 +done +1/2 +1\.5000 +0\.2500 +50\.0 +1,234", last)
    assert re.search(r"l2-0 +failed +1/2", last)
    assert "1 of 2 runs done, 1 failed" in last
    assert "error: 1 of 2 runs failed, as said above: l2-0" in last
    assert "ERROR: failed to reproduce 'train@l2-0'" in text and "error: something is wrong" in text
    assert "epoch 1/2: cross-entropy" not in text
    assert re.search(r"l2-0 +(starts|trains)", text)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.dvc
def test_ctrl_c_on_a_terminal_leaves_the_table_and_one_line(talking):
    terminal = repro(talking, "--jobs", "1", STUB_SLOW="l2-0")
    terminal.read(until="Running stage 'train@l2-0'")
    terminal.process.send_signal(signal.SIGINT)
    text = without_colours(terminal.read())
    assert terminal.process.wait() == 130
    last = text[text.rindex("images/s") :]
    assert last.rstrip().splitlines()[-1].startswith("interrupted: 1 of 2 runs done and kept. `make repro` continues")
    assert "\x1b[?25h" in terminal.output  # the cursor is back
