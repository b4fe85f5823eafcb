"""Write plans/: everything that a stage's results depend on, except images and models."""

import argparse
import sys
from pathlib import Path

# Import this copy's code, in any working directory, also in the copies that `dvc exp run --temp` makes.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, params, plan


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings = params.load()
    plan.write(settings)
    for note in plan.notes(settings):
        print(note)


if __name__ == "__main__":
    errors.run(main)
