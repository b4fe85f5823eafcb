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
    from regbench import figures

    written, _ = summary.write(settings, runs)
    drawn = figures.draw(settings, runs)
    summary.write_report(settings, runs, written, drawn)
    print(f"wrote {summary.SUMMARY}, {summary.CURVES}, {len(drawn)} figures in {figures.FOLDER} and {summary.REPORT}")


if __name__ == "__main__":
    errors.run(main)
