"""For the reviewer of a pull request: what it changed, and whether its results are those of its code.

From Git alone: no cache, no remote, no training.

    python -m regbench.review check
    python -m regbench.review report origin/main
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml

from regbench import errors, evidence, params, summary
from regbench.errors import UserError

STALE = "the committed results are not those of params.yaml and the code"
MEND = "Run `make repro`, and commit dvc.lock, report.md, metrics/ and plots/."


def check():
    """Raise a `UserError` that names what is stale, unless the committed results are those of params and code."""
    if found := stale():
        raise UserError("\n  ".join([f"{STALE}:", *found]) + f"\n{MEND}")
    print("The committed results are those of params.yaml and the code.")


def stale():
    """What has changed since the results were made, a line each."""
    runs = params.load().runs
    current = {"prepare", "report", *(f"{stage}@{run}" for stage in ("train", "evaluate") for run in runs)}
    # DVC keeps what it knows of stages that are gone.
    lock = {name: it for name, it in yaml.safe_load(_read("dvc.lock"))["stages"].items() if name in current}
    made = {output["path"]: output.get("md5") for stage in lock.values() for output in stage.get("outs", ())}
    return [*_stale_stages(), *_broken_chain(lock, made), *_stale_report(made)]


def _stale_stages():
    """What `dvc status` finds changed, but for files that only a cache or a run brings."""
    status = json.loads(_run(sys.executable, "-m", "dvc", "status", "--json"))
    found = []
    for stage, entries in status.items():
        for entry in entries:
            if not isinstance(entry, dict):  # "changed command", "changed checksum"
                found.append((stage, entry, ""))
                continue
            for changes in entry.values():
                for path, change in changes.items():
                    if isinstance(change, dict):  # params.yaml: {key: change}
                        found += [(stage, key, how) for key, how in change.items()]
                    else:
                        found.append((stage, path, change))
    absent = {path for _, path, change in found if change in ("deleted", "not in cache")}
    ignored = _ignored(absent)
    return [f"{stage}: {what} {how}".rstrip() for stage, what, how in found if what not in ignored]


def _broken_chain(lock, made):
    """Stages that in dvc.lock ran on another output of a stage before than the one that stands there."""
    for name, stage in lock.items():
        for dependency in stage.get("deps", ()):
            path = dependency["path"]
            if path in made and made[path] != dependency.get("md5"):
                yield f"{name}: ran on another {path} than dvc.lock has"


def _stale_report(made):
    """Whether report.md was made of the runs that dvc.lock has."""
    made_of = summary.made_of(_read(summary.REPORT))
    if not made_of:
        return [f"report: {summary.REPORT} does not say which runs it was made of"]
    return [
        f"report: made of another {path} than dvc.lock has" for path, md5 in made_of.items() if made.get(path) != md5
    ]


def report(base, images=""):
    """Markdown: what changed from commit `base` to the workspace, in params, runs, numbers and figures.

    Args:
        base: a Git revision.
        images: what to put before the figures' paths, such as the address of the repository's raw files.
    """
    if subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}"], capture_output=True
    ).returncode:
        raise UserError(f"there is no commit {base} here; run `git fetch origin` (in CI: fetch the whole history)")
    common = _run("git", "merge-base", base, "HEAD").strip()
    lines = [f"## regbench: changes since {base} ({common[:7]})", ""]
    if found := stale():
        lines += [f"> **Stale**: {STALE}.", ">", *(f"> - {line}" for line in found), ">", f"> {MEND}", ""]
    changed_params, run_files = _params_diff(common), _run_files(common)
    summaries = [json.loads(text) for text in (_blob(common, summary.SUMMARY) or "{}", _read(summary.SUMMARY))]
    for title, part in (
        ("Parameters", _changed_params(changed_params)),
        ("Runs", _changed_runs(*run_files)),
        ("Test accuracy", _changed_accuracy(*summaries, run_files, changed_params)),
        ("Other metrics", _changed_metrics(*summaries)),
    ):
        lines += [f"### {title}", "", *part, ""]
    figures = sorted(set(re.findall(r"!\[[^]]*\]\(([^)]+)\)", _read(summary.REPORT))))
    changed = [path for path in figures if _file_blob(path) not in (None, _blob(common, path))]
    if changed:
        lines += ["### Figures that changed", "", *(f"![{path}]({images}{path})" for path in changed), ""]
    return "\n".join(lines)


def _params_diff(base):
    """{key: {"old": …, "new": …}}"""
    changes = json.loads(_run(sys.executable, "-m", "dvc", "params", "diff", base, "--json") or "{}")
    return changes.get("params.yaml", {})


def _changed_params(rows):
    """A row for each changed key."""
    if not rows:
        return ["None."]
    shown = (f"| {key} | {_value(row.get('old'))} | {_value(row.get('new'))} |" for key, row in rows.items())
    return ["| parameter | before | now |", "|---|---|---|", *shown]


def _value(value):
    return "–" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _run_files(base):
    """{run: MD5 of its evaluation.json} before and now: it holds numbers only, no dates or seconds."""
    return [
        {path.split("/")[1]: md5 for path, md5 in summary.made_of(text).items() if path.endswith("evaluation.json")}
        for text in ((_blob(base, summary.REPORT) or b"").decode(), _read(summary.REPORT))
    ]


def _changed_runs(before, now):
    """Which runs are new, changed or gone."""
    groups = {
        "new": [run for run in now if run not in before],
        "changed": [run for run in now if run in before and now[run] != before[run]],
        "gone": [run for run in before if run not in now],
    }
    said = [f"- {word}: {', '.join(runs)}" for word, runs in groups.items() if runs]
    return said or ["None."]


def _changed_accuracy(before, now, run_files, changed_params):
    """A row a regularizer: accuracy before and now, and in words whether it changed."""
    other_data = any(key.startswith("data.") for key in changed_params)
    files = [
        {name: {run: md5 for run, md5 in runs.items() if run.rpartition("-")[0] == name} for name in {**before, **now}}
        for runs in run_files
    ]
    rows = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name), now.get(name)
        cells = [f"{summary.test_cell(row)}, n = {row['seeds']}" if row else "–" for row in (old, new)]
        change, word = "", "new" if new else "gone"
        if old and new:
            if files[0][name] and files[0][name] == files[1][name]:
                word = "the same"
            elif other_data:
                word = "other data"
            elif old["seeds"] != new["seeds"]:
                word = "other seeds"
            elif "diverged" in {**old, **new}:
                word = "diverged" if "diverged" in new else "diverged before"
            else:
                change, word = _compare(old, new)
        rows.append(f"| {name} | {' | '.join(cells)} | {change} | {word} |")
    picks = [next((name for name, row in rows.items() if row.get("validation_pick")), "–") for rows in (before, now)]
    picked = f"Validation picks {picks[1]}" + (f", before {picks[0]}." if picks[0] != picks[1] else ", as before.")
    return [
        "| regularizer | before, % [95 %] | now, % [95 %] | change, points [95 %] | |",
        "|---|---|---|---|---|",
        *rows,
        "",
        f"{picked} n counts seeds. better, worse: the interval of the change leaves out 0, each regularizer by itself; "
        "with one seed it does not cover what another seed would give.",
    ]


def _changed_metrics(before, now):
    """A row for each other metric of a regularizer that changed."""
    rows = [
        f"| {name} | {metric} | {before[name][metric]:.6g} | {now[name][metric]:.6g} |"
        for name in now
        for metric in summary.MEANS
        if metric in before.get(name, ()) and metric in now[name] and before[name][metric] != now[name][metric]
    ]
    return ["| regularizer | metric | before | now |", "|---|---|---|---|", *rows] if rows else ["None changed."]


def _compare(old, new):
    """The change of test accuracy, its interval from those of both, and a word."""
    first, second = (
        evidence.Estimate(row["test_accuracy"], row["test_accuracy_low"], row["test_accuracy_high"], row["seeds"])
        for row in (new, old)
    )
    change = evidence.difference(first, second)
    word = "better" if change.low > 0 else "worse" if change.high < 0 else "can't tell"
    low, high = summary.points(change.low), summary.points(change.high)
    return f"{summary.points(change.value)} [{low}, {high}]", word


def _read(path):
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error}); run `make repro`") from None


def _blob(revision, path):
    """A file's bytes in a commit, or None."""
    done = subprocess.run(["git", "show", f"{revision}:./{path}"], capture_output=True)
    return None if done.returncode else done.stdout


def _file_blob(path):
    """A file's bytes in the workspace, or None."""
    return Path(path).read_bytes() if Path(path).is_file() else None


def _ignored(paths):
    """Those of the paths that Git ignores, directories also under their own name."""
    done = subprocess.run(
        ["git", "check-ignore", "--stdin", "--no-index"],
        input="\n".join(path for given in paths for path in (given, f"{given}/")),
        capture_output=True,
        text=True,
    )
    return {path.rstrip("/") for path in done.stdout.splitlines()}


def _run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`{' '.join(command[-5:])}` failed: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(prog="regbench.review", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="exit with 1 and name what is stale, unless all results are current")
    compare = commands.add_parser("report", help="print what changed since a commit, as Markdown")
    compare.add_argument("base", help="a Git revision, such as origin/main")
    compare.add_argument("--images", default="", help="what to put before the figures' paths")
    arguments = parser.parse_args()
    if arguments.command == "check":
        check()
    else:
        print(report(arguments.base, arguments.images))


if __name__ == "__main__":
    errors.run(main)
