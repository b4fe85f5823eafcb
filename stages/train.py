"""Train one model: a key under reg: in params.yaml, and a seed."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import runtime

if __name__ == "__main__":
    runtime.large_pages()  # before anything takes its time to import

from regbench import cores, errors, params


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reg", help="a key under reg:")
    parser.add_argument("seed", type=int, help="one of train.seeds")
    arguments = parser.parse_args()
    settings = params.load()
    settings.require(arguments.reg)
    # TensorFlow loads from here on: mistakes in params have been told by now.
    runtime.start(deterministic=not settings.train.jit, heap=cores.heap(settings))
    from regbench import training

    training.train(settings, arguments.reg, arguments.seed)


if __name__ == "__main__":
    errors.run(main)
