"""The program `regbench`: its help, its messages, and which packages it imports."""

import subprocess
import sys

import pytest
from scratch import ROOT

from regbench import catalogue

COMMANDS = (
    "repro",
    "search",
    "watch",
    "table",
    "show",
    "check",
    "pr-report",
    "compare",
    "list",
    "predict",
    "export",
    "push",
    "docs",
    "mend",
)


def regbench(*arguments, folder=ROOT, before="pass"):
    """Run the program with 80 columns, and the Python code `before` first.

    Returns:
        (exit code, output, the names of the imported modules as text)
    """
    code = f"import sys\n{before}\nfrom regbench.cli import main\ntry: main()\nfinally: print(sorted(sys.modules))"
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "80", "PYTHONUTF8": "1"}
    done = subprocess.run(
        (sys.executable, "-c", code, *arguments), cwd=folder, env=environment, text=True, capture_output=True
    )
    output, _, modules = done.stdout.rpartition("[")
    return done.returncode, output + done.stderr, modules


@pytest.mark.parametrize("arguments", [[], *([command] for command in COMMANDS)])
def test_help(arguments):
    code, output, modules = regbench(*arguments, "--help")
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    assert all(command in output for command in arguments or COMMANDS)
    for costly in ("tensorflow", "numpy", "pydantic", "dvc", "rich"):
        assert f"'{costly}'" not in modules


def test_list_names_every_kind_and_network():
    code, output, modules = regbench("list")
    assert code == 0 and "'tensorflow'" not in modules
    assert max(map(len, output.splitlines())) <= 80
    words = " ".join(output.split())
    for entry in (*catalogue.kinds().values(), *catalogue.networks().values()):
        assert entry.name in words
    assert all(scope in words for scope in catalogue.SCOPES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["repro", "--jobs", "0"], "'0' is not allowed; it should be a whole number from 1"),
        (["repro", "--jobs", "two"], "'two' is not allowed; it should be a whole number from 1"),
        (["repro", "--jobs", "2", "--cluster", "auto"], "not allowed with argument"),
        (["reproduce"], "invalid choice"),
        ([], "required"),
        (["pr-report"], "required: BASE"),
        (["show", "-n", "few"], "'few' is not allowed; it should be a whole number from 0"),
        (["show", "--md", "--csv"], "not allowed with argument"),
        (["compare"], "required: REV"),
    ],
)
def test_wrong_arguments(arguments, words):
    code, output, _ = regbench(*arguments)
    assert code == 2 and words in output


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["repro"],
        ["search", "l2", "--from", "1e-4", "--to", "1e-3"],
        ["watch"],
        ["table"],
        ["show"],
        ["check"],
        ["pr-report", "HEAD"],
        ["compare", "HEAD"],
        ["push"],
        ["docs"],
        ["mend"],
    ],
)
def test_a_folder_without_a_project(tmp_path, command):
    code, output, modules = regbench(*command, folder=tmp_path)
    assert code == 1
    assert output == f"error: {tmp_path} is not the folder of a regbench project: it has no dvc.yaml\n"
    assert "'tensorflow'" not in modules


def test_another_projects_program(tmp_path):
    (tmp_path / "src/regbench").mkdir(parents=True)
    code, output, _ = regbench("check", folder=tmp_path)
    assert code == 1 and f"error: this is the regbench of {ROOT}. For this folder's: `make setup`" in output


def test_a_terminal_that_knows_ascii_only():
    code, output, _ = regbench("list", before="sys.stdout.reconfigure(encoding='ascii')")
    assert code == 0 and "Traceback" not in output


def test_how_to_activate_is_said_where_dvc_is_not_found(monkeypatch, tmp_path):
    from regbench import cli

    monkeypatch.setattr(sys, "executable", str(tmp_path / ".venv/bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / ".venv/bin"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    assert cli._activation() == ". .venv/bin/activate"
    (tmp_path / ".venv/bin/dvc").write_text("#!/bin/sh\n")
    (tmp_path / ".venv/bin/dvc").chmod(0o755)
    assert cli._activation() is None
