"""Write the images that all runs share into prepared/."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, plan
from regbench.data import prepare


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    prepare.prepare(plan.read("plans/prepare.json")["data"])


if __name__ == "__main__":
    errors.run(main)
