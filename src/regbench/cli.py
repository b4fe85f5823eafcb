"""The program `regbench`. Each subcommand imports what it needs when it is called."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from regbench import errors
from regbench.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand; exit code 1 where something is wrong, with a message."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # a terminal that knows no × is no reason to stop
    chosen = _parser().parse_args(arguments)

    def call() -> None:
        check_code()
        chosen.call(chosen)

    try:
        errors.run(call)
    except BrokenPipeError:  # whoever read the output has stopped; a line more would fail again
        os._exit(1)


def check_code() -> None:
    """Raise a `UserError` in a project that this program is not part of: it would judge one by the code of another."""
    code = Path("src/regbench").resolve()
    if code.is_dir() and code != Path(__file__).resolve().parent:
        raise UserError(
            f"this is the regbench of {Path(__file__).resolve().parents[2]}. For this folder's: `make setup`, or "
            "`PYTHONPATH=src regbench …`"
        )


def repro(arguments: argparse.Namespace) -> None:
    """Train and evaluate what is out of date, and show the table.

    Results that DVC's cache or its remote store has are taken from there. Plain `dvc repro` gives the same results, one
    run after another.
    """
    if arguments.cluster:
        from regbench.runner import cluster

        cluster.repro(arguments.cluster)
    else:
        from regbench.runner import local

        local.repro(arguments.jobs)
    table(arguments)
    if hint := _activation():
        print(f"\nTo use `dvc` and `regbench` in this shell, type: {hint}")


def table(arguments: argparse.Namespace) -> None:
    """Show the table of the last report."""
    from regbench.report import table

    table.show()


def check(arguments: argparse.Namespace) -> None:
    """Fail unless the committed results are those of the committed params and code. It needs Git only, no models."""
    from regbench.review import check

    check.verify()


def pr_report(arguments: argparse.Namespace) -> None:
    """Print what changed since another commit, as Markdown for a pull request. It needs Git only, no models."""
    from regbench.review import pull_request

    print(pull_request.report(arguments.base, arguments.images))


def list_(arguments: argparse.Namespace) -> None:
    """List the kinds of regularizers for `reg`, and the networks for `model.network`, in params.yaml."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from regbench import catalogue

    kinds = Table("kind", "covers", "what it does", title="Kinds of regularizers (reg)", box=SIMPLE_HEAD)
    for kind in catalogue.kinds().values():
        kinds.add_row(kind.name, kind.scope, kind.summary)
    networks = Table("network", "what it is", title="Networks (model.network)", box=SIMPLE_HEAD)
    for network in catalogue.networks().values():
        networks.add_row(network.name, network.summary)
    console = Console()
    for found in (kinds, networks):
        found.title_justify = "left"
        console.print(found)
    console.print(
        "A file in src/regbench/regularizers/ or src/regbench/networks/ adds one. A scope in params.yaml changes what "
        "a line under reg covers: all; backbone, the kernels of convolutions; head, kernel and bias of the last "
        "layer; no_depthwise, all but depthwise kernels. Formulas and sources are in docs/regularizers.md.",
        highlight=False,
    )


def mend(arguments: argparse.Namespace) -> None:
    """Replace a dvc.lock that DVC can't read, after a merge conflict or a kill. `regbench repro` does it too."""
    from regbench.runner import lock

    print("\n".join(lock.mend()) or "There is nothing to mend.")


def push(arguments: argparse.Namespace) -> None:
    """Send results to DVC's remote store: those of all commits of this branch, and of states that were tried.

    A clone at any of these commits then trains nothing, nor does `dvc exp run --pull` of a state that was tried here.
    """
    from regbench.runner import store

    _, remote = store.facts()
    if not remote:
        raise UserError(
            "there is no remote store to send to; add one, for example with `dvc remote add --default store "
            "s3://bucket/regbench`, and commit .dvc/config"
        )
    sent = store.push()
    print(
        f'{sent["commits"]:,} commits have results. {sent["files"]:,} files that the remote store "{remote}" lacked '
        f"were sent, and the run cache ({sent['entries']:,} entries)"
    )
    if sent["lost"]:
        print(f'{sent["lost"]:,} files of older states are neither in DVC\'s cache nor in "{remote}"')


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="regbench",
        description="Compare regularizers of image classifiers: train, measure and report what params.yaml asks for.",
        epilog="`regbench COMMAND --help` says more about one of them.",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, call: object, words: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=words, description=call.__doc__)
        command.set_defaults(call=call)
        return command

    command = add("repro", repro, "train and evaluate what is out of date, and show the table")
    place = command.add_mutually_exclusive_group()
    place.add_argument("--jobs", type=_jobs, metavar="N", help="train N runs at a time; by default by cores and memory")
    place.add_argument(
        "--cluster", metavar="ADDRESS", help="train on the Ray cluster at this address; auto: this machine's"
    )
    add("table", table, "show the table of the last report")
    add("check", check, "fail unless the committed results are those of the committed params and code")
    command = add("pr-report", pr_report, "print what changed since another commit, as Markdown")
    command.add_argument("base", metavar="BASE", help="the commit to compare with, such as origin/main")
    command.add_argument(
        "--images", default="", metavar="URL", help="where the figures can be seen; a URL that ends in /"
    )
    add("list", list_, "list the kinds of regularizers and the networks")
    add("push", push, "send the results of all commits to DVC's remote store")
    add("mend", mend, "replace a dvc.lock that DVC can't read")
    return parser


def _jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it should be a whole number from 1")
    return int(text)


def _activation() -> str | None:
    """The command after which `dvc` is found, or None where it is found already."""
    folder = Path(sys.executable).parent
    found = shutil.which("dvc")
    if found and Path(found).parent == folder:
        return None
    activate = folder / "activate"
    if not activate.exists():
        return f'export PATH="{folder}:$PATH"'
    return f". {activate.relative_to(Path.cwd()) if activate.is_relative_to(Path.cwd()) else activate}"
