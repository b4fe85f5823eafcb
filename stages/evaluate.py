"""Measure one trained model: a key under reg: in params.yaml, and a seed."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import cores, errors, lock, params, runtime


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reg", help="a key under reg:")
    parser.add_argument("seed", type=int, help="one of train.seeds")
    arguments = parser.parse_args()
    settings = params.load()
    settings.require(arguments.reg)
    lock.check(f"train@{arguments.reg}-{arguments.seed}")
    # TensorFlow loads from here on: mistakes in params have been told by now.
    runtime.start(threads=cores.evaluation_threads())
    from regbench import evaluation

    evaluation.evaluate(settings, arguments.reg, arguments.seed)


if __name__ == "__main__":
    errors.run(main)
