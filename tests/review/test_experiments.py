"""`regbench show`: what experiments and commits changed, and their results; from Git alone, at 80 columns."""

import csv
import io
import json
import subprocess

import pytest
import scratch
import yaml
from rich.console import Console

from regbench import params, plan
from regbench.report import results
from regbench.review import experiments

NINE = (
    "none",
    "l1",
    "l2",
    "orthogonal",
    "proximal_l1",
    "weight_decay",
    "elastic",
    "a_name_of_40_characters_in_all_",
    "l4",
)


def estimate(value, by=0.035):
    return {"value": value, "n": 3, "low": value - by, "high": value + by}


def row(validation, test=0.5, difference=None, verdict="can't tell"):
    compared = {} if difference is None else {"difference": estimate(difference), "verdict": verdict}
    return {"validation": validation, "test": estimate(test)} | compared


class Project(scratch.Repository):
    """A Git repository that holds params and results, but not the code that makes results."""

    def put(self, rows, **reg):
        settings = yaml.safe_load((scratch.ROOT / "params.yaml").read_text()) | {"reg": reg or dict.fromkeys(rows, 0)}
        self.write("params.yaml", yaml.safe_dump(settings, sort_keys=False))
        self.write("report.json", json.dumps({"rows": rows}))

    def experiment(self, name, rows, **reg):
        """Make an experiment as `dvc exp run` does: a commit that only a ref under refs/exps points to."""
        base = self.run("git", "rev-parse", "HEAD").strip()
        self.put(rows, **reg)
        self.commit(f"dvc: commit experiment {name}")
        self.run("git", "update-ref", f"refs/exps/{base[:2]}/{base[2:]}/{name}", "HEAD")
        self.run("git", "reset", "-q", "--hard", base)


ROWS = {"none": row(0.57, 0.561), "l2": row(0.595, 0.58, 0.02)}


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = Project(tmp_path)
    made.run("git", "init", "-q", "-b", "main")
    made.write("dvc.yaml", "stages: {}\n")
    made.put(ROWS, none=0, l2=0.001)
    made.commit("first results")
    return made


def shown():
    """The lines of the table in a terminal of 80 columns."""
    found = experiments.revisions()
    console = Console(width=80, highlight=False, color_system=None)
    with console.capture() as capture:
        experiments.terminal(found, console)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_an_experiment_shows_what_it_changed_and_what_came_of_it(project):
    project.experiment("randy-hunk", ROWS | {"l2": row(0.61, 0.6, 0.039, "better")}, none=0, l2=0.0005)
    base = project.run("git", "rev-parse", "--short=7", "HEAD").strip()
    assert [" ".join(line.split()) for line in shown()[1:-3]] == [
        f"randy-hunk on {base}",
        "reg.l2 0.001 → 0.0005",
        "l2 61.0* 60.0 [56.5, 63.5] +3.9 [+0.4, +7.4] better",
        f"{base} first results",
        "none 57.0 56.1 [52.6, 59.6]",
        "l2 59.5* 58.0 [54.5, 61.5] +2.0 [−1.5, +5.5] can't tell",
    ]


def test_nine_regularizers_fit_into_80_columns(project):
    long = {name: row(0.5 + place / 100, 0.1234, -0.222, "can't tell") for place, name in enumerate(NINE)}
    project.put(long)
    project.commit("a subject that is much longer than the eighty columns of a terminal, as subjects of commits can be")
    project.experiment("an-experiment", {name: it | {"validation": 0.9} for name, it in long.items()})
    lines = shown()
    assert max(map(len, lines)) <= 80
    assert sum("12.3 [8.8, 15.8] −22.2 [−25.7, −18.7] can't tell" in line for line in lines) == 2 * len(NINE)
    assert any(line.endswith("…") for line in lines)
    for name in NINE:
        assert sum(line.split()[:1] == [name] or line.startswith(f"  {name[:16]}") for line in lines) >= 2, name


def test_the_workspace_and_what_was_not_run_yet(project):
    assert not [line for line in shown() if line.startswith("workspace")]
    project.put(ROWS, none=0, l2=0.01, l1=0.001)
    lines = shown()
    assert lines[1:4] == ["workspace", "  reg.l2 0.001 → 0.01; +reg.l1 0.001", "  the same accuracies"]


def test_what_validation_picks_is_what_the_report_says(project):
    """If validation images are the test images, validation picks nothing."""
    project.put({name: it | {"validation_pick": False} for name, it in ROWS.items()}, none=0, l2=0.001)
    project.commit("nothing is picked")
    assert not [row for it in experiments.revisions(commits=1) for row in it.rows.values() if row.pick]


def test_an_experiment_that_is_in_the_workspace_is_shown_once(project):
    changed = ROWS | {"l2": row(0.61)}
    project.experiment("randy-hunk", changed, none=0, l2=0.0005)
    project.put(changed, none=0, l2=0.0005)
    lines = shown()
    assert "in the workspace" in lines[1] and not [line for line in lines if line.startswith("workspace")]


def test_commits_of_other_results_only_and_how_many(project):
    project.put({name: it | {"gap": 0.1} for name, it in ROWS.items()}, none=0, l2=0.001)
    project.commit("report.json with the same accuracies")
    for strength in (0.002, 0.003):
        project.put(ROWS | {"l2": row(strength)}, none=0, l2=strength)
        project.commit(f"l2 is {strength}")
        project.write("notes", str(strength))
        project.commit("a commit without results")
    names = [it.about for it in experiments.revisions()]
    assert names == ["l2 is 0.003", "l2 is 0.002", "first results"]
    newest, before = experiments.revisions(commits=2)
    assert [it.regularizer for it in newest.shown] == ["none", "l2"]
    assert [it.regularizer for it in before.shown] == ["l2"]
    assert experiments.revisions(commits=0) == []


def test_sorted(project):
    for name, validation, test in (("b", 0.7, 0.59), ("a", 0.6, 0.6)):
        project.experiment(name, ROWS | {"l2": row(validation, test)})

    def names(sort):
        return [it.name for it in experiments.ordered(experiments.revisions(1), sort)][:2]

    assert names("val") == ["b", "a"] and names("test") == ["a", "b"]
    assert names("name") != names("val")


def test_markdown_and_csv(project, capsys):
    project.experiment("randy-hunk", ROWS | {"l2": row(0.61, 0.6, 0.039, "better")}, none=0, l2=0.0005)
    experiments.show(markdown=True)
    lines = capsys.readouterr().out.splitlines()
    better = "| randy-hunk | reg.l2 0.001 → 0.0005 | l2 | 61.0\\* | 60.0 [56.5, 63.5] | +3.9 [+0.4, +7.4] | better |"
    assert lines[2] == better
    assert {line.count(" | ") for line in lines[2:]} == {6}
    experiments.show(as_csv=True)
    first, *_ = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (first["name"], first["validation"], first["test"], first["verdict"]) == (
        "randy-hunk",
        "0.61",
        "0.6",
        "better",
    )


def test_the_committed_report_is_read_whole():
    report = results.read(scratch.ROOT / "report.json")
    read = experiments.rows((scratch.ROOT / "report.json").read_bytes(), b"")
    assert [*read] == [*report.rows]
    for name, measured in results.measured(report.rows).items():
        assert (read[name].validation.value, read[name].pick) == (measured.validation, measured.validation_pick)
        assert (read[name].test.value, read[name].test.low) == (measured.test.value, measured.test.low)
        assert read[name].verdict == (measured.verdict or "")
    of_summary = experiments.rows(b"", (scratch.ROOT / "metrics/summary.json").read_bytes())
    assert [it.pick for it in of_summary.values()] == [it.pick for it in read.values()]


OLD = b'{"l2": {"validation_accuracy": 0.5, "test_accuracy": 0.4}}'


@pytest.mark.parametrize(
    ("report", "summary", "expected"),
    [
        (b"", OLD, ("50.0*", "40.0", "", "")),
        (b"<<<<<<< HEAD\n", OLD, ("50.0*", "40.0", "", "")),
        (b'{"rows": []}', b"", ("? ", "?", "?", "?")),
        (b'{"rows": {"l2": 3}}', b"", ("? ", "?", "?", "?")),
        (
            b'{"rows": {"l2": {"test": {"value": 0.5, "low": "x", "high": 1}, "validation": NaN}}}',
            b"",
            ("? ", "50.0", "", ""),
        ),
        (b'{"rows": {"l2": {"test": 0.5, "validation": 0.5, "difference": {}}}}', b"", ("50.0*", "50.0", "?", "?")),
        (b'{"rows": {"l2": {"diverged": [[0, 2]]}}}', b"", (" ", "", "", "diverged")),
        (b"[" * 100_000, b"\xff", ("? ", "?", "?", "?")),
    ],
)
def test_older_formats_and_damaged_files(report, summary, expected):
    (found,) = experiments.rows(report, summary).values()
    assert experiments.cells(found) == expected


def test_a_commit_without_readable_files_is_no_error(project):
    project.write("params.yaml", "a: [\n")
    project.write("report.json", "{")
    project.commit("damaged \x1b[31m")
    project.put(ROWS, none=0, l2=0.001)
    project.commit("mended")
    lines = shown()
    assert any(line.startswith("  ?") for line in lines) and any("damaged ?[31m" in line for line in lines)
    (project.folder / "params.yaml").unlink()
    (project.folder / "report.json").unlink()
    assert shown()[1] == "workspace"


def test_before_the_first_results(project):
    project.run("git", "rm", "-q", "report.json")
    project.run("git", "commit", "-q", "--amend", "-m", "params only")
    (project.folder / "metrics/summary.json").unlink(missing_ok=True)
    assert experiments.revisions() and shown()[1].split()[0] == "workspace"


def test_the_program(project):
    output = project.regbench("show", "--sort", "val", "-n", "10", PYTHONPATH=str(scratch.ROOT / "src"), COLUMNS="80")
    assert "first results" in output and "Traceback" not in output
    subprocess.run(["rm", "-rf", ".git"], cwd=project.folder, check=True)
    output = project.regbench("show", check=False, PYTHONPATH=str(scratch.ROOT / "src"))
    assert project.returncode == 1 and "not a git repository" in output


def test_sections_without_results_are_those_that_no_plan_holds():
    assert experiments.WITHOUT_RESULT == ("cluster.", "live.")
    settings = params.load(scratch.ROOT / "params.yaml")
    plans = plan.compute(settings)
    others = {"cluster": params.Cluster(cpus=3, gpus=1), "live": params.Live(tensorboard=True, dvclive=True)}
    assert plan.compute(settings.model_copy(update=others)) == plans
    changes = {"data": {"seed": 1}, "model": {"width": 0.5}, "train": {"epochs": 9}, "evaluate": {"near_zero": 0.1}}
    for name, values in (changes | {"report": {"baseline": None}}).items():
        section = getattr(settings, name).model_copy(update=values)
        assert plan.compute(settings.model_copy(update={name: section})) != plans, name
