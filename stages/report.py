"""Write metrics/summary.json, plots/curves.csv and the figures from the runs that params.yaml names."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, params, summary


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    runs = summary.read_runs(params.load())
    from regbench import figures

    drawn = figures.draw(*summary.write(runs))
    print(f"wrote {summary.SUMMARY}, {summary.CURVES} and {', '.join(map(str, drawn))}")


if __name__ == "__main__":
    errors.run(main)
