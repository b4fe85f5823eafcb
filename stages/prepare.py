"""Write the arrays that all runs share into data/."""

import argparse
import sys
from pathlib import Path

# This copy's code, wherever the working directory came from: also in the copies that `dvc exp run --temp` makes.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from regbench import dataset, errors, params, sources


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    settings = params.load()
    info = dataset.prepare(sources.find(settings.data.dataset), settings.data, "data")
    sizes = ", ".join(f"{count:,} {split}" for split, count in info["sizes"].items())
    print(f"{info['name']}: {sizes} images of {'×'.join(map(str, info['shape']))}, {len(info['classes'])} classes")


if __name__ == "__main__":
    errors.run(main)
