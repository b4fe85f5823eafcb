"""Write metrics/summary.json, plots/, report.json and report.md from the runs that the plan names."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, plan
from regbench.report import write


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    write.report(plan.read("plans/report.json"))


if __name__ == "__main__":
    errors.run(main)
