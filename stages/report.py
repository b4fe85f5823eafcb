"""Write metrics/summary.json, plots/, and report.md from the runs that params.yaml names."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, lock, params, summary


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings = params.load()
    lock.check(*(f"{stage}@{run}" for run in settings.runs for stage in ("train", "evaluate")))
    runs = summary.read_runs(settings)
    if strangers := sorted({path.name for path in Path("runs").iterdir()} - set(settings.runs)):
        print(
            f"not in params.yaml, so left out: runs/{', runs/'.join(strangers)}. Delete what you don't need: DVC takes "
            "all of runs/ for the report's input, and in a clone without these `dvc status` would find it changed"
        )
    from regbench import figures

    written, _ = summary.write(settings, runs)
    drawn = figures.draw(settings, runs)
    summary.write_report(settings, runs, written, drawn)
    print(f"wrote {summary.SUMMARY}, {summary.CURVES}, {len(drawn)} figures in {figures.FOLDER} and {summary.REPORT}")


if __name__ == "__main__":
    errors.run(main)
