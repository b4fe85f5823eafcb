"""The program `regbench`. Each subcommand imports what it needs when it is called."""

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

from regbench import errors
from regbench.errors import UserError


def main(arguments: list[str] | None = None) -> None:
    """Run a subcommand. On an error, end with a message and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # do not stop because a terminal can't show ×
    chosen = _parser().parse_args(arguments)
    chosen.given = sys.argv[1:] if arguments is None else arguments

    def call() -> None:
        check_code()
        # `list` needs no project; `predict` and `export` can work with the path of a model alone.
        if chosen.call not in (list_, predict, export):
            check_project()
        chosen.call(chosen)

    try:
        errors.run(call, continues=chosen.call not in (predict, export, show))
    except BrokenPipeError:  # the reader of the output has stopped; writing another line would fail again
        os._exit(1)


def check_project() -> None:
    """Raise a `UserError` if the working directory is not a project's folder."""
    if not Path("dvc.yaml").exists():
        raise UserError(f"{Path.cwd()} is not the folder of a regbench project: it has no dvc.yaml")


def check_code() -> None:
    """Raise a `UserError` if the project here has its own regbench: this one would judge it by other code."""
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
    from regbench.review import blocks

    if arguments.cluster:
        from regbench.runner import cluster

        cluster.repro(arguments.cluster)
    else:
        from regbench.runner import local

        local.repro(arguments.jobs)
    for path in blocks.fill():
        print(f"written: the tables of {path}")
    table(arguments)
    if hint := _activation():
        print(f"\nTo use `dvc` and `regbench` in this shell, type: {hint}")


def search(arguments: argparse.Namespace) -> None:
    """Find a strength: train a few of many, choose by validation accuracy, compare it with the baseline on test.

    Each round is a DVC experiment, trained in a copy of the project. What was trained before is not trained again. If a
    search was killed, the same command continues it.
    """
    from regbench import params
    from regbench.search import line, proposals, search

    settings = params.load()
    text = Path("params.yaml").read_text(encoding="utf-8")
    ends = [*zip(arguments.lowest, arguments.highest, strict=False)]
    if len(arguments.lowest) != len(arguments.highest):
        raise UserError("there should be as many --from as --to")
    lines = line.lines(settings, arguments.target, arguments.over, ends, arguments.per_decade)
    trials = arguments.trials
    if trials is None and len(arguments.over) > 1:
        trials = proposals.TRIALS
    if trials is not None:
        proposals.check()
    search.run(
        search.Search(lines, text, search.seeds_of(settings, arguments.seeds), Path.cwd(), trials),
        search.Place(arguments.jobs, arguments.cluster),
        shlex.join(["regbench", *arguments.given]),
        arguments.apply,
    )


def table(arguments: argparse.Namespace) -> None:
    """Show the table of the last report."""
    from regbench.report import table

    table.show()


def watch(arguments: argparse.Namespace) -> None:
    """Draw the curves of the runs while they train, in a browser page that updates itself. Ctrl-C ends it."""
    from regbench.runner import watch

    watch.watch(arguments.port)


def show(arguments: argparse.Namespace) -> None:
    """Show the workspace, DVC's experiments and commits in a table, with their changes and results."""
    from regbench.review import experiments

    experiments.show(arguments.commits, arguments.sort, arguments.md, arguments.csv)


def check(arguments: argparse.Namespace) -> None:
    """Fail unless the committed results match the committed params and code. It needs only Git, no models."""
    from regbench.review import check

    check.verify()


def pr_report(arguments: argparse.Namespace) -> None:
    """Print what changed since another commit, as Markdown for a pull request. It needs only Git, no models."""
    from regbench.review import pull_request

    print(pull_request.report(arguments.base, arguments.images))


def compare(arguments: argparse.Namespace) -> None:
    """Print what changed from one commit or experiment to another, as Markdown. It needs only Git, no models."""
    from regbench.review import pull_request

    print(pull_request.between(arguments.first, arguments.second, arguments.images))


def list_(arguments: argparse.Namespace) -> None:
    """List the kinds of regularizers for `reg`, and the networks for `model.network`, in params.yaml."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from regbench import catalogue

    kinds = Table("kind", "acts on", "what it does", title="Kinds of regularizers (reg)", box=SIMPLE_HEAD)
    for kind in catalogue.kinds().values():
        kinds.add_row(kind.name, kind.acts_on, kind.summary)
    networks = Table("network", "what it is", title="Networks (model.network)", box=SIMPLE_HEAD)
    for network in catalogue.networks().values():
        networks.add_row(network.name, network.summary)
    networks.add_row("./file.py:function", "Your own; docs/networks.md says what the function takes and returns.")
    networks.add_row("of keras.applications", ", ".join(catalogue.applications()))
    console = Console()
    for found in (kinds, networks):
        found.title_justify = "left"
        console.print(found)
    console.print(
        "A file in src/regbench/regularizers/ or src/regbench/networks/ adds one. Kinds that act on weights have a "
        "scope, which params.yaml can change: all; backbone, all kernels but the head's; head, kernel and bias of the "
        "last layer; no_depthwise, all but depthwise kernels. The others act on a part of training. Formulas, sources "
        "and usual strengths are in docs/regularizers.md.",
        highlight=False,
    )


def predict(arguments: argparse.Namespace) -> None:
    """Print the class that a trained model predicts for each image, and its probability.

    Images are read and resized like the images that the model was trained on. Those that can't be read are skipped.
    """
    from regbench import runtime
    from regbench.evaluation import classify, saved

    model, files = saved.find(arguments.model), classify.find(arguments.images)
    saved.metadata(model)  # reports a problem with the file before TensorFlow starts
    runtime.start(threads=runtime.evaluation_threads())
    classify.show(model, files, arguments.csv)


def export(arguments: argparse.Namespace) -> None:
    """Write a trained model in a format that other programs read: uint8 images in, logits out.

    A .json file beside it has the names of the classes.
    """
    from regbench import runtime
    from regbench.evaluation import export, saved

    model = saved.find(arguments.model)
    path = export.place(model, arguments.to, arguments.out)
    runtime.start()
    export.export(model, arguments.to, path)
    about = saved.metadata(model)
    print(f"{path}: {about['input']} → {about['output']}; {path}.json has the classes")


def mend(arguments: argparse.Namespace) -> None:
    """Replace a dvc.lock that DVC can't read, after a merge conflict or a kill. `regbench repro` does it too."""
    from regbench.runner import lock

    print("\n".join(lock.mend()) or "There is nothing to mend.")


def docs(arguments: argparse.Namespace) -> None:
    """Fill the marked tables of README.md and docs/ from the committed JSON. `regbench repro` does it too."""
    from regbench.review import blocks

    print("\n".join(f"written: {path}" for path in blocks.fill()) or "All tables are up to date.")


def push(arguments: argparse.Namespace) -> None:
    """Send results to DVC's remote store: those of all commits of this branch, and of other states tried here.

    After that, a clone at any of these commits trains nothing. Neither does `dvc exp run --pull` for a state that was
    tried here.
    """
    from regbench.runner import store

    _, remote = store.facts()
    if not remote:
        raise UserError(
            "there is no remote store to send to; add one, for example with `dvc remote add --default store "
            "s3://bucket/regbench`, and commit .dvc/config"
        )
    sent = store.push()
    commits = "1 commit has" if sent["commits"] == 1 else f"{sent['commits']:,} commits have"
    print(
        f'{commits} results. {sent["files"]:,} files that the remote store "{remote}" lacked were sent, and the run '
        f"cache ({sent['entries']:,} entries)"
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

    def add_place(command: argparse.ArgumentParser) -> None:
        place = command.add_mutually_exclusive_group()
        place.add_argument(
            "--jobs", type=_from_one, metavar="N", help="train N runs at a time; by default by cores and memory"
        )
        place.add_argument(
            "--cluster", metavar="ADDRESS", help="train on the Ray cluster at this address; auto: this machine's"
        )

    def add_images(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--images", default="", metavar="URL", help="where the figures can be seen; a URL that ends in /"
        )

    add_place(add("repro", repro, "train and evaluate what is out of date, and show the table"))
    command = add("search", search, "find a strength by few trainings")
    command.add_argument(
        "target", nargs="+", metavar="LINE", help="a key under reg, KEY.KIND where it has several kinds, or a kind"
    )
    ends = {"type": float, "action": "append", "required": True, "metavar": "STRENGTH"}
    command.add_argument("--from", dest="lowest", **ends, help="the weakest; once, or once for each LINE and --over")
    command.add_argument("--to", dest="highest", **ends, help="the strongest")
    command.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KIND",
        help="another kind on the same line, or KEY.KIND, searched with it; may be repeated",
    )
    command.add_argument(
        "--seeds", type=_seeds, default=3, metavar="N", help="number of seeds for the best strength; 3 by default"
    )
    command.add_argument(
        "--per-decade", type=int, choices=(1, 2, 3), default=2, help="strengths: 1; 1 and 3; or 1, 2 and 5"
    )
    command.add_argument(
        "--trials",
        type=_from_one,
        metavar="N",
        help="let Optuna propose N strengths instead of a coarse grid; 30 for three kinds or more",
    )
    command.add_argument("--apply", action="store_true", help="set the best in params.yaml")
    add_place(command)
    command = add("watch", watch, "draw the curves of the runs in the browser while they train")
    command.add_argument("--port", type=int, default=0, metavar="N", help="port to listen on; by default a free one")
    add("table", table, "show the table of the last report")
    command = add("show", show, "compare experiments and commits in a table")
    command.add_argument(
        "-n",
        dest="commits",
        type=_count,
        default=3,
        metavar="N",
        help="show the last N commits whose results differ; by default 3",
    )
    command.add_argument(
        "--sort", choices=("val", "test", "name"), help="the best on validation or test first, or by name"
    )
    form = command.add_mutually_exclusive_group()
    form.add_argument("--md", action="store_true", help="as Markdown")
    form.add_argument("--csv", action="store_true", help="as CSV, with all digits")
    add("check", check, "fail unless the committed results are those of the committed params and code")
    command = add("pr-report", pr_report, "print what changed since another commit, as Markdown")
    command.add_argument("base", metavar="BASE", help="the commit to compare with, such as origin/main")
    add_images(command)
    command = add("compare", compare, "print what changed from one commit or experiment to another")
    command.add_argument("first", metavar="REV", help="a commit, a branch or an experiment's name")
    command.add_argument("second", metavar="REV", nargs="?", help="another one; left out: the workspace")
    add_images(command)
    add("list", list_, "list the kinds of regularizers and the networks")
    command = add("predict", predict, "name the class of images, by a trained model")
    model = {"metavar": "MODEL", "help": "a run, such as l2-0, or the path of a model.keras"}
    command.add_argument("model", **model)
    command.add_argument("images", nargs="+", metavar="IMAGES", help="image files, or folders of such")
    command.add_argument("--csv", action="store_true", help="print comma-separated values")
    command = add("export", export, "write a trained model in a format that other programs read")
    command.add_argument("model", **model)
    command.add_argument("--to", required=True, choices=("saved_model", "tflite", "onnx"), help="the format")
    command.add_argument("--out", metavar="PATH", help="by default exports/RUN, with the format's suffix")
    add("push", push, "send the results of all commits to DVC's remote store")
    add("docs", docs, "fill the tables of README.md and docs/ from the committed JSON")
    add("mend", mend, "replace a dvc.lock that DVC can't read")
    return parser


def _count(text: str) -> int:
    return _whole(text, 0)


def _from_one(text: str) -> int:
    return _whole(text, 1)


def _seeds(text: str) -> int:
    return _whole(text, 2)


def _whole(text: str, low: int) -> int:
    if not text.isdecimal() or int(text) < low:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; it should be a whole number from {low}")
    return int(text)


def _activation() -> str | None:
    """The shell command that puts this environment's `dvc` on the PATH; None if it is there already."""
    folder = Path(sys.executable).parent
    found = shutil.which("dvc")
    if found and Path(found).parent == folder:
        return None
    activate = folder / "activate"
    if not activate.exists():
        return f'export PATH="{folder}:$PATH"'
    return f". {activate.relative_to(Path.cwd()) if activate.is_relative_to(Path.cwd()) else activate}"
