"""Train one model, as its plan says."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import errors, live, plan, runtime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", help="a regularizer and a seed, such as l2-0")
    run = parser.parse_args().run
    settings = plan.read(f"plans/{run}/train.json")
    live.require(live.wanted())
    # TensorFlow loads only now, so a missing plan is reported at once.
    runtime.start(deterministic=settings["train"].deterministic, jit=settings["train"].jit)
    from regbench.training import fit

    fit.train(settings)


if __name__ == "__main__":
    errors.run(main)
