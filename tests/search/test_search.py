"""`regbench search` under real dvc, with real training at the tiniest size: killed, continued, applied."""

import json
import os
import re
import shutil
import signal
import sys
import time

import numpy as np
import psutil
import pytest
import scratch
from scratch import stages_run

from regbench import cli, params
from regbench.errors import UserError
from regbench.search import search
from regbench.search.line import Axis, Line

COMMAND = ["search", "l2", "--from", "1e-3", "--to", "1e-2", "--per-decade", "1", "--seeds", "2", "--jobs", "2"]
LINE = Line("l2", (Axis("l2", (0.001, 0.01)),))


@pytest.fixture(scope="module")
def template(image_folder, tmp_path_factory):
    """The folder that `repository` copies."""
    folder = tmp_path_factory.mktemp("search") / "template"
    settings = scratch.tiny_params("photos", **scratch.TINIEST)
    settings["reg"] = {"none": 0, "l2": 0.01}
    repository = scratch.copy_project(folder, settings)
    (folder / "photos").symlink_to(image_folder)
    repository.write(".git/info/exclude", "/photos\n")
    repository.regbench("repro", "--jobs", "2")
    repository.commit("results")
    return folder


@pytest.fixture
def repository(template, tmp_path):
    """A project whose results are committed: none and l2 at 0.01, one seed; `data.dataset` is a relative path."""
    return scratch.Repository(shutil.copytree(template, tmp_path / "a path with spaces", symlinks=True))


def killed_at(repository, words):
    """Start the search, and kill its process group at the first line with these words. Returns its output."""
    process = repository.start("python", "-m", "regbench", *COMMAND)
    output = ""
    for line in process.stdout:
        output += line
        if words in line:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert words in output, output
    return output


@pytest.mark.slow
@pytest.mark.dvc
def test_three_kinds(repository):
    three = ["search", "l2", "--over", "l1", "--over", "dropout"]
    for low, high in (("1e-4", "1e-3"), ("1e-5", "1e-4"), ("0.1", "0.2")):
        three += ["--from", low, "--to", high]
    three += ["--per-decade", "1", "--seeds", "2", "--trials", "2"]
    output = repository.regbench(*three)
    assert "l2_l1_dropout: 2 strengths of l2, 1e-4 to 1e-3 × 2 strengths of l1" in output
    assert re.search(
        r"^l2_l1_dropout: l2 1e-[34], l1 1e-[45], dropout 0\.[12] is best on validation", output, re.MULTILINE
    )
    assert re.search(r"^  l2_l1_dropout: \{l2: 1e-[34], l1: 1e-[45], dropout: 0\.[12]\}$", output, re.MULTILINE)
    assert (repository.folder / ".regbench/search/l2_l1_dropout.png").exists()


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.dvc
def test_killed_continued_and_applied(repository):
    before = {path: repository.read(path) for path in ("params.yaml", "dvc.lock", "report.json", "report.md")}
    output = killed_at(repository, "Running stage 'train@none-1'")
    # Its DVC commands and trainings end a moment later.
    clone = str(repository.folder / ".regbench/search/clone")
    for _ in range(300):
        if not any(clone in (it.info["cwd"] or "") for it in psutil.process_iter(["cwd"])):
            break
        time.sleep(0.1)
    # What was trained under the line's own name is known: 0.01 with seed 0, and the baseline.
    assert {it for it in stages_run(output) if it.startswith("train@")} <= {
        "train@l2_1e_3-0",
        *(f"train@{run}-1" for run in ("none", "l2_1e_3", "l2_1e_2")),
    }
    assert "train@l2_1e_3-0" in stages_run(output)
    assert {path: repository.read(path) for path in before} == before

    output = repository.regbench(*COMMAND, "--apply")
    assert "train@l2_1e_3-0" not in stages_run(output)
    assert re.search(r"^l2: 1e-[23] is best on validation, \d+\.\d% with 2 seeds and 20 images\.", output, re.MULTILINE)
    assert "against none on test images, read for these two only:" in " ".join(output.split())
    (best,) = re.findall(r"params\.yaml has reg\.l2: (1e-[23]) now", output)
    assert repository.read("params.yaml") == before["params.yaml"].replace("l2: 0.01\n", f"l2: {best}\n")
    assert {path: repository.read(path) for path in before if path != "params.yaml"} == {
        path: text for path, text in before.items() if path != "params.yaml"
    }
    found = json.loads(repository.read(".regbench/search/l2.json"))
    assert [it["label"] for it in found["points"]] == ["1e-3", "1e-2"]
    assert (repository.folder / ".regbench/search/l2.png").exists()

    # The rounds are ordinary experiments, and what they trained is known under the line's own name.
    listed = repository.dvc("exp", "list", "--name-only").split()
    assert listed == ["search-l2-1", "search-l2-2", "search-l2-3"]
    shown = json.loads(repository.dvc("exp", "show", "--json"))
    assert "search-l2-3" in json.dumps(shown) and "l2_1e_3" in json.dumps(shown)
    for strength in ("0.001", "0.01"):
        output = repository.dvc("exp", "run", "-S", f"reg.l2={strength}", "-S", "seeds=[0,1]")
        assert set(stages_run(output)) <= {"plan", "report"}
    assert "[0, 1]" in repository.regbench("compare", "main", "search-l2-3")
    repository.run("git", "checkout", "--quiet", ".")
    repository.dvc("exp", "apply", "search-l2-2")
    assert "l2_1e_3: {l2: 1e-3}" in repository.read("params.yaml")
    assert "up to date" in repository.dvc("repro")


@pytest.mark.slow
@pytest.mark.dvc
def test_a_lock_of_another_machine_whose_results_are_nowhere(repository):
    """The search still knows what was trained here: none, and l2 at 0.01 under its own name."""
    repository.forget_outputs("none-0", "l2-0")
    output = killed_at(repository, "Round 2")
    assert "Round 1, search-l2-1: l2: 1e-2; seed 0" in output and "train@" not in output


def test_the_planner_is_told_what_is_known_and_no_more():
    text = (scratch.ROOT / "params.yaml").read_text()
    wanted = search.Search((LINE,), text, (0, 1), scratch.ROOT)
    known = search.Known()
    assert [it.points for it in wanted.rounds(LINE, known)] == [((1,),)]
    known.right["l2_1e_2", 0] = np.array([True, False])
    known.right["l2_1e_2", 1] = np.array([True, True])
    assert [it.points for it in wanted.rounds(LINE, known)] == [((1,),), ((0,), (1,))]
    known.diverged.add(("l2_1e_3", 0))
    assert wanted.rounds(LINE, known)[-1].seeds == (0, 1)
    assert wanted.name == "search-l2"
    text = wanted.params([(LINE, (0,))], (0, 1))
    assert [*params.parse(text).reg] == ["none", "l2_1e_3"]


@pytest.mark.parametrize(
    ("diverged", "said"),
    [
        (set(), None),
        ({("l2_1e_3", 0)}, None),
        ({("l2_1e_2", 1)}, "l2: 1e-2 is the best of those that were tried with all seeds, and it diverged with seed 1"),
        (
            {(name, seed) for name in ("l2_1e_2", "l2_1e_3") for seed in (0, 1)},
            "l2 diverged with every strength that was tried",
        ),
    ],
)
def test_a_diverged_best_strength_is_named_with_its_seed(diverged, said):
    wanted = search.Search((LINE,), (scratch.ROOT / "params.yaml").read_text(), (0, 1), scratch.ROOT)
    known = search.Known(diverged=diverged)
    for name, right in (("l2_1e_2", 100), ("l2_1e_3", 40)):
        for seed in (0, 1):
            if (name, seed) not in diverged:
                known.right[name, seed] = np.arange(100) < right
    why = search.why_none(wanted, LINE, search.ranked(wanted, LINE, known), known)
    assert why == (said and f"{said}; search with --to lower")


@pytest.mark.parametrize(
    ("seeds", "count", "expected"), [((0, 1, 2), 2, (0, 1)), ((0, 1, 2), 4, (0, 1, 2, 3)), ((5, 1), 4, (5, 1, 0, 2))]
)
def test_seeds_are_those_of_params_first(seeds, count, expected):
    settings = params.load(scratch.ROOT / "params.yaml").model_copy(update={"seeds": seeds})
    assert search.seeds_of(settings, count) == expected


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        ("l2 --from 1e-6 --to 1e-2", [("l2", [("l2", 1e-6, 1e-2)])]),
        ("l1 l2 --from 1e-6 --to 1e-2", [("l1", [("l1", 1e-6, 1e-2)]), ("l2", [("l2", 1e-6, 1e-2)])]),
        ("l1 l2 --from 1e-6 --to 1e-3 --from 1 --to 2", [("l1", [("l1", 1e-6, 1e-3)]), ("l2", [("l2", 1, 2)])]),
        (
            "l2 --over l1 --from 1e-5 --from 1e-6 --to 1e-2 --to 1e-4",
            [("l2_l1", [("l2", 1e-5, 1e-2), ("l1", 1e-6, 1e-4)])],
        ),
        (
            "elastic.l2 --over elastic.l1 --from 1e-6 --to 1e-3",
            [("elastic", [("l2", 1e-6, 1e-3), ("l1", 1e-6, 1e-3)])],
        ),
        (
            "elastic.l2 --over elastic.l1 --over orthogonal --from 1e-6 --to 1e-3",
            [("elastic_orthogonal", [("l2", 1e-6, 1e-3), ("l1", 1e-6, 1e-3), ("orthogonal", 1e-6, 1e-3)])],
        ),
    ],
)
def test_what_commands_search(command, lines, monkeypatch, tmp_path):
    text = (scratch.ROOT / "params.yaml").read_text()
    text = text.replace("\n  l2: 0.001\n", "\n  l2: 0.001\n  elastic: {l1: 1e-5, l2: 1e-4}\n")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(search, "run", lambda *arguments: asked.append(arguments))
    cli.main(["search", *command.split(), "--jobs", "3"])
    ((wanted, place, typed, apply),) = asked
    found = [(it.key, [(axis.kind, axis.strengths[0], axis.strengths[-1]) for axis in it.axes]) for it in wanted.lines]
    assert (found, place.jobs, apply) == (lines, 3, False)
    assert wanted.trials == (30 if len(lines[0][1]) == 3 else None)
    assert typed == f"regbench search {command} --jobs 3"


def test_optuna_is_not_installed(monkeypatch):
    monkeypatch.chdir(scratch.ROOT)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SystemExit, match=r"it is not installed: `\.venv/bin/pip install -e '\.\[search\]'`"):
        cli.main(["search", "l2", "--from", "1e-4", "--to", "1e-3", "--trials", "9"])


def test_messages_name_the_command(capsys):
    command = "regbench search l2 --from 1e-3 --to 1e-2"
    with pytest.raises(UserError, match=r"failed\. `regbench search l2 .*` tries again"), search.said_as(command):
        raise UserError("1 of 2 runs failed. `make repro` tries again")
    with pytest.raises(SystemExit) as ended, search.said_as(command):
        print("interrupted: 1 run done and kept. `make repro` continues", file=sys.stderr)
        sys.exit(130)
    assert ended.value.code == 130
    with pytest.raises(SystemExit) as ended, search.said_as(command):
        raise KeyboardInterrupt
    assert ended.value.code == 130
    said = capsys.readouterr().err.split("\n")
    assert said[0] == f"interrupted: 1 run done and kept. `{command}` continues"
    assert said[2] == f"interrupted; what was trained is kept. `{command}` goes on from here"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["l2"], "required: --from, --to"),
        (["l2", "--from", "weak", "--to", "1"], "invalid float value"),
        (["l2", "--from", "1", "--to", "2", "--seeds", "1"], "'1' is not allowed; it should be a whole number from 2"),
        (["l2", "--from", "2", "--to", "1"], "--from 2 --to 1 is not allowed"),
        (
            ["l2", "l1", "weight_decay", "--from", "1", "--from", "2", "--to", "3", "--to", "4"],
            "once for each of the 3",
        ),
        (["l2", "--from", "1", "--from", "2", "--to", "3"], "there should be as many --from as --to"),
        (["l2", "l1", "--over", "orthogonal", "--from", "1", "--to", "2"], "--over works with one line only"),
        (["l2", "reg.l2", "--from", "1e-3", "--to", "1e-2"], "each line can be searched once"),
        (["l22", "--from", "1e-3", "--to", "1e-2"], "l22 is neither a key under reg"),
    ],
)
def test_wrong_commands(arguments, said, monkeypatch, capsys):
    monkeypatch.chdir(scratch.ROOT)
    with pytest.raises(SystemExit) as ended:
        cli.main(["search", *arguments])
    assert said in f"{capsys.readouterr().err} {ended.value.code}"
