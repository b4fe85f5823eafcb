"""Training on a set larger than the memory it may use: 6 GB of images in a process limited to 2 GB.

The limit is a control group's where this user may make one (page cache counts then too), else the kernel's limit
on a process's own data (RLIMIT_DATA). Prints JSON; fails where training fails.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GROUP = Path("/sys/fs/cgroup/memory/regbench")
LIMIT = 2 << 30
IMAGES, SIDE = 40_000, 224


def generate(folder):
    """Prepared arrays of uint8 noise: `IMAGES` of `SIDE`×`SIDE`×3, with dataset.json."""
    import numpy as np

    rng = np.random.default_rng(0)
    for split, count in (("train", IMAGES), ("validation", 256)):
        (folder / split).mkdir(parents=True)
        labels = rng.integers(0, 10, count)
        np.save(folder / split / "labels.npy", labels)
        images = np.lib.format.open_memmap(folder / split / "images.npy", "w+", np.uint8, (count, SIDE, SIDE, 3))
        for start in range(0, count, 500):
            part = images[start : start + 500]
            part[:] = rng.integers(0, 256, part.shape, np.uint8)
        images.flush()
    info = {"classes": [str(label) for label in range(10)], "sha256": {"train": "noise"}}
    (folder / "dataset.json").write_text(json.dumps(info))


def train(folder):
    """One epoch of the committed params, in this process."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    import measure

    return measure.regbench_way(folder, 32, 32, IMAGES, 256, 1)


def limited():
    """Put this process under the limit; to be called in the child, before it starts."""
    if (GROUP / "cgroup.procs").exists():
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def main():
    try:
        GROUP.mkdir(exist_ok=True)
        (GROUP / "memory.limit_in_bytes").write_text(str(LIMIT))
        kind = "control group, page cache included"
    except OSError:
        kind = "RLIMIT_DATA, page cache not included"
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        generate(Path(folder) / "data")
        size = sum(file.stat().st_size for file in Path(folder).rglob("*.npy"))
        os.sync()
        started = time.time()
        done = subprocess.run(
            [sys.executable, __file__, "train", str(Path(folder) / "data")],
            preexec_fn=limited,
            capture_output=True,
            text=True,
        )
    if GROUP.exists():
        GROUP.rmdir()
    if done.returncode:
        sys.exit(f"training under {LIMIT >> 20} MB failed ({done.returncode}):\n{done.stderr[-3000:]}")
    result = json.loads(done.stdout.splitlines()[-1])
    print(
        json.dumps(
            {
                "data_mb": size >> 20,
                "limit_mb": LIMIT >> 20,
                "limit": kind,
                "peak_mb": round(result["peak_mb"]),
                "images": IMAGES,
                "seconds": round(time.time() - started, 1),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(sys.argv[2])))
    else:
        main()
