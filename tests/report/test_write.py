"""report.json, report.md and the terminal's table."""

import hashlib
import json
import re
from pathlib import Path

import fake_runs
import pytest
from rich.console import Console

from regbench import files
from regbench.errors import UserError
from regbench.report import results, runs, summary, table, write

pytestmark = pytest.mark.slow  # figures take a few seconds


@pytest.fixture
def written(tmp_path, monkeypatch):
    """A function of options of `fake_runs.report_plan` and `fake_runs.write` that returns the report."""
    monkeypatch.chdir(tmp_path)

    def report(diverged=(), options=None, **plan):
        plan = fake_runs.report_plan(**plan)
        fake_runs.write(plan, **(options or {}))
        for run in diverged:
            fake_runs.diverge(tmp_path / "runs" / run)
        write.report(plan)
        return results.read()

    return report


def compiled(plan, **options):
    """Write runs with these options of `fake_runs.write`, and return their report without figures."""
    fake_runs.write(plan, **options)
    found = runs.read(plan)
    return write.compile_report(plan, found, summary.rows(plan, found), [])


def in_a_terminal(report, width=80, cost=None):
    console = Console(width=width, record=True)
    console.print(table.terminal(report, width, cost))
    return console.export_text()


def test_report_says_it_all(written, capsys):
    report = written()
    said = capsys.readouterr().out
    assert said == "report.md: none, l1, l2, 1 seed; validation picks l2\n"
    text = Path("report.md").read_text()
    assert "| l2 | 70.0 [65.3, 74.3] | +20.0 [" in text
    assert "corrupted: accuracy in % on 100 test images" in text
    assert "| regularizer | reg loss | near zero | exactly zero | norm | effective learning rate |" in text
    assert all(f"- {sentence}\n" in text for sentence in report.verdicts)
    pictures = re.findall(r"!\[(.+)\]\((plots/.+\.png)\)", text)
    assert [(path, caption) for caption, path in pictures] == list(report.figures)
    assert len(pictures) == 9 and all(Path(path).exists() for _, path in pictures)
    assert "<!--" not in text and "largest class" not in text
    assert list(report.runs) == ["none-0", "l1-0", "l2-0"]
    for run, md5s in report.runs.items():
        for file, md5 in md5s.items():
            assert hashlib.md5(Path("runs", run, file).read_bytes()).hexdigest() == md5
    assert report.plan == hashlib.md5(Path("plans/report.json").read_bytes()).hexdigest()
    assert (report.baseline, report.pick, report.seeds) == ("none", "l2", (0,))


def test_a_run_that_ended_early_by_a_kind_that_acts_on_no_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = fake_runs.report_plan(reg={"none": None, "early_stopping": ("early_stopping", 2.0)}, seeds=[0, 1])
    fake_runs.write(plan)
    history = Path("runs/early_stopping-1/history.csv")
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    write.report(plan)
    curves = Path("plots/curves.csv").read_text().splitlines()
    assert [line.rsplit(",") for line in curves if line.startswith("early_stopping,1,3")] == []
    assert len(curves) == 1 + 3 + 3 + 3 + 2
    assert results.read().rows["early_stopping"].test.n == 2


def test_validation_on_test_images_picks_nothing(written, capsys):
    report = written(validates_on_test=True)
    assert report.pick is None
    assert not any("picks" in sentence for sentence in report.verdicts)
    said = "Validation images are the test images here, so validation can't choose between regularizers."
    assert said in report.verdicts
    assert "picked by validation" not in Path("report.md").read_text()
    assert capsys.readouterr().out == "report.md: none, l1, l2, 1 seed\n"


def test_the_same_again_byte_for_byte(written):
    written(seeds=[0, 1])
    first = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    written(seeds=[0, 1])
    assert first == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def test_what_params_no_longer_name_is_left_out_and_said(written, capsys):
    written()
    capsys.readouterr()
    report = written(reg={"none": None})
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "moved out of runs/ to .regbench/removed/, since params.yaml does not name it: l1-0, l2-0"
    assert len(said) == 2
    assert list(report.rows) == ["none"]


@pytest.mark.parametrize("diverged", [["l2"], ["none"], ["none", "l1", "l2"]])
def test_what_diverged_has_a_row(written, diverged):
    report = written(diverged=[f"{name}-1" for name in diverged], seeds=[0, 1])
    text = Path("report.md").read_text()
    assert "nan" not in text + Path("metrics/summary.json").read_text()
    for name in diverged:
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert "| diverged, 1 of 2 |" in row
        assert f"- {name} diverged with seed 1 in epoch 2: lower train.learning_rate" in text
    assert in_a_terminal(report).count("diverged, 1 of 2") == len(diverged)


def test_the_table_fits_a_terminal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    test = [200, 205, 310, 30, 200, 188, 250, 240, 233, 201, 199, 222]
    plan = fake_runs.report_plan(fake_runs.TWELVE, seeds=[0, 1, 2])
    report = compiled(plan, largest=250, test=lambda place, seed: test[place] + 11 * seed * (place % 3))
    for cost in (None, dict.fromkeys(report.rows, 123.45)):
        shown = in_a_terminal(report, cost=cost)
        for name, accuracy in (("stochastic_depth ", "52.5"), ("mixup_l2 ", "61.0"), ("largest class", "62.5")):
            assert any(line.startswith(name) and accuracy in line for line in shown.splitlines())
        assert "…" not in shown and all(len(line) <= 80 for line in shown.splitlines())
        assert "corrupted" in shown and ("s/epoch" in shown) == bool(cost)
    assert "| largest class | 62.5 |  |  | 62.5 |" in write.markdown(report)
    without = in_a_terminal(compiled(fake_runs.report_plan(baseline=None), corrupted=0))
    assert "difference" not in without and "corrupted" not in without and "50.0 [45.1, 54.9]" in without


def test_show_prints_what_the_report_says(written, capsys):
    report = written()
    capsys.readouterr()
    table.show()
    shown = " ".join(capsys.readouterr().out.split())
    assert all(sentence in shown for sentence in report.verdicts)
    assert "picked by validation" in shown and "report.md" in shown


def effects_of(reg, **changes):
    """The headings of the second table if all rows have a reg loss of 0 and the last one has these `changes`."""
    plan = fake_runs.report_plan(reg)
    fake_runs.write(plan)
    rows = summary.rows(plan, runs.read(plan))
    rows = {name: row.model_copy(update={"reg_loss": 0.0}) for name, row in rows.items()}
    last = next(reversed(rows))
    rows[last] = rows[last].model_copy(update=changes)
    return list(table.effect_columns(rows))


@pytest.mark.parametrize(
    ("kind", "changes", "headings"),
    [
        ("dropout", {}, []),
        ("dropout", {"near_zero": 0.27}, ["near zero"]),
        ("dropout", {"exact_zeros": 0.01}, ["exactly zero"]),
        ("dropout", {"cost": 1.1}, ["step time"]),
        ("weight_decay", {}, ["norm", "effective learning rate"]),
        ("weight_decay", {"effective_learning_rate": None}, ["norm", "effective learning rate"]),
        ("proximal_l1", {}, ["near zero", "exactly zero", "norm", "effective learning rate"]),
        ("mixup", {}, ["confidence"]),
        ("my_own", {"reg_loss": 0.1}, ["reg loss", "norm", "effective learning rate"]),
    ],
)
def test_columns_of_effects_follow_the_question(tmp_path, monkeypatch, kind, changes, headings):
    monkeypatch.chdir(tmp_path)
    assert effects_of({"none": None, "line": (kind, 0.1)}, **changes) == headings


def test_seconds_are_those_of_the_last_training_here(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    report = compiled(fake_runs.report_plan(seeds=[0, 1]))
    files.write_json(results.PATH, report.model_dump(mode="json", exclude_none=True))
    log = tmp_path / table.LOG
    log.mkdir(parents=True)
    (log / "l1-0.csv").write_text("epoch,seconds,images_per_second\n1,30.0,1\n2,8.0,1\n3,9.0,1\n4,30.0,1\n")
    (log / "l1-1.csv").write_text("epoch,seconds,images_per_second\n1,11.0,1\n")
    (log / "l2-0.csv").write_text("epoch,seconds,images_per_second\n1\n")
    assert table.seconds(report) == {"l1": 10.0}
    table.show()
    assert "s/epoch" in capsys.readouterr().out
    assert "s/epoch" not in write.markdown(report)


@pytest.fixture(scope="module")
def report_text(tmp_path_factory):
    """The text of a report.json, without figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        report = compiled(fake_runs.report_plan())
    return files.json_text(report.model_dump(mode="json", exclude_none=True))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "report.json is damaged (JSON: "),
        (lambda text: "", "report.json is damaged"),
        (lambda text: text.replace('"epochs": 3', '"epochs": "three"'), "report.json is damaged (epochs: "),
        (lambda text: text.replace('"correct": [\n        200', '"correct": [\n        900'), "rows.none.correct"),
        (lambda text: text.replace('"none": {', '"../none": {'), "is no name"),
        (lambda text: text.replace('"value": 0.5,', '"value": NaN,'), "is damaged"),
        (lambda text: f"<<<<<<< HEAD\n{text}", "has a merge conflict in line 1: resolve params.yaml, run `make repro`"),
    ],
)
def test_a_damaged_report_is_told_in_words(report_text, tmp_path, monkeypatch, damage, said):
    monkeypatch.chdir(tmp_path)
    assert damage(report_text) != report_text
    results.PATH.write_text(damage(report_text))
    with pytest.raises(UserError, match=re.escape(said)):
        table.show()
    results.PATH.unlink()
    with pytest.raises(UserError, match=r"^there is no report.json; run `make repro`$"):
        table.show()


def test_numbers_have_six_digits(written):
    written(seeds=[0, 1, 2], options={"test": lambda place, seed: 100 + 7 * place + 13 * seed * (place + 1)})
    numbers = re.findall(r"-?\d+\.\d+(?:e-?\d+)?", results.PATH.read_text())
    assert numbers and all(len(re.sub(r"e.*|[-.]", "", number).strip("0")) <= 6 for number in numbers)
    json.loads(results.PATH.read_text())
