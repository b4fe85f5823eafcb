"""How often intervals contain the true difference, and how often equal regularizers are called different: a simulation.

    python benchmarks/coverage.py

Compares `difference_over_seeds_and_images` with the paired t-test over seeds alone, in cases where seeds differ most,
or images, or both. Takes two minutes. Writes benchmarks/coverage.json, which docs/statistics.md shows.
"""

import argparse
import math
from pathlib import Path

import numpy as np
from scipy import special

from regbench import files
from regbench.report import statistics
from regbench.review import blocks

OUT = Path(__file__).parent / "coverage.json"

IMAGES = 400
DIFFICULTY = 0.8
LEVEL, BETTER = 0.2, 0.2
SCENES = {
    "seeds": (0.1, 0.0),
    "both": (0.07, 0.3),
    "images": (0.02, 0.5),
}
"""{what differs most: (standard deviation over seeds, over images) of the normal numbers in `draw`}"""


def draw(rng, seeds, scene, better):
    """Which images two regularizers classify correctly: yields two arrays, bool [seeds, images].

    An image is right if a sum of four normal numbers is below a level: the image's difficulty, which all runs share,
    the regularizer's effect on the image, the seed's effect on the regularizer, and noise. The level is `LEVEL` for the
    first regularizer and `LEVEL` + `better` for the second.
    """
    seed_spread, image_spread = scene
    difficulty = rng.normal(0, DIFFICULTY, IMAGES)
    for level in (LEVEL, LEVEL + better):
        common = difficulty + rng.normal(0, image_spread, IMAGES)
        yield common + rng.normal(0, seed_spread, (seeds, 1)) + rng.normal(0, 1, (seeds, IMAGES)) < level


def truth(scene, better):
    """The expected accuracy of the second regularizer minus that of the first."""
    spread = math.sqrt(DIFFICULTY**2 + scene[0] ** 2 + scene[1] ** 2 + 1)
    return float(special.ndtr((LEVEL + better) / spread) - special.ndtr(LEVEL / spread))


def measure(seeds, scene, cases):
    """{method: (share of intervals that contain the true difference, share of false alarms among equal pairs)}"""
    rng, found = np.random.default_rng(seeds), {}
    for case in range(cases):
        better = BETTER * (case % 2)
        first, second = draw(rng, seeds, scene, better)
        counts = first.sum(axis=1).tolist(), second.sum(axis=1).tolist()
        for method, estimate in (
            ("seeds and images", statistics.difference_over_seeds_and_images(first, second)),
            ("seeds alone", statistics.difference_over_seeds(*counts, IMAGES)),
        ):
            if estimate.low is not None:
                held = estimate.low <= truth(scene, better) <= estimate.high
                alarm = None if better else estimate.p < statistics.SIGNIFICANT
                found.setdefault(method, []).append((held, alarm))
    return {
        method: (
            np.mean([held for held, _ in rows]),
            np.mean([alarm for _, alarm in rows if alarm is not None]),
        )
        for method, rows in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=2000)
    cases, rows = parser.parse_args().cases, []
    for words, scene in SCENES.items():
        for seeds in (2, 3, 5, 10):
            shares = [f"{share:.1%}" for both in measure(seeds, scene, cases).values() for share in both]
            rows.append([words, str(seeds), *shares])
            print(*rows[-1], sep="  ", flush=True)
    files.write_json(
        OUT,
        {
            "machine": blocks.made_here(),
            "note": f"{cases:,} simulated pairs of regularizers in each row, {IMAGES} test images",
            "heading": [
                "what differs most",
                "seeds",
                "holds the truth",
                "false alarms",
                "t-test over seeds alone: holds the truth",
                "t-test over seeds alone: false alarms",
            ],
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
