"""Training on a set larger than the memory it may use: 6 GB of images in a process limited to 2 GB.

The limit is that of a control group if this user may make one; the page cache then counts, too. Otherwise it is the
kernel's limit on a process's own data (RLIMIT_DATA). Prints JSON. Fails if training fails.
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
    """Prepare a dataset of uint8 noise: `IMAGES` of `SIDE`×`SIDE`×3 to train on, and 256 each for the other splits."""
    sys.path.insert(0, str(ROOT / "src"))
    import numpy as np

    from regbench import params
    from regbench.data import prepare, source

    rng = np.random.default_rng(0)
    counts = {"train": IMAGES + 256, "test": 256}
    noise = source.Source(
        name="noise",
        origin="generated",
        classes=tuple("0123456789"),
        shape=(SIDE, SIDE),
        channels=3,
        labels={split: np.arange(count) % 10 for split, count in counts.items()},
        files={split: [str(index) for index in range(count)] for split, count in counts.items()},
        read=lambda split, indices: (rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in indices),
    )
    chosen = {"image_size": SIDE, "train_images": IMAGES, "validation_images": 256}
    prepare.write(noise, params.load(ROOT / "params.yaml").data.model_copy(update=chosen), folder)


def train(folder):
    """One epoch of the committed params, in this process."""
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    import measure

    return measure.regbench_way(folder, 32, 32, IMAGES, 256, 1)


def make_group():
    """Make a control group with the limit; whether this user may."""
    try:
        GROUP.mkdir(exist_ok=True)
    except OSError:
        return False
    try:
        (GROUP / "memory.limit_in_bytes").write_text(str(LIMIT))
    except OSError:
        GROUP.rmdir()
        return False
    return True


def limit_this_process(grouped):
    """Put the calling process under the limit: the child calls it before it starts its program."""
    if grouped:
        (GROUP / "cgroup.procs").write_text(str(os.getpid()))
    else:
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))


def leave_cache(paths):
    """Drop these files from the page cache.

    A cached page counts for the process that brought it there, so no page that this process wrote may be left.
    """
    for path in paths:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main():
    grouped = make_group()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR", "/var/tmp")) as folder:
        generate(Path(folder) / "prepared")
        arrays = list(Path(folder).rglob("*.npy"))
        size = sum(path.stat().st_size for path in arrays)
        os.sync()
        if grouped:
            leave_cache(arrays)
        started = time.time()
        done = subprocess.run(
            [sys.executable, __file__, "train", str(Path(folder) / "prepared")],
            preexec_fn=lambda: limit_this_process(grouped),
            capture_output=True,
            text=True,
        )
        seconds = time.time() - started
    if grouped:
        peak = int((GROUP / "memory.max_usage_in_bytes").read_text()) >> 20
        GROUP.rmdir()
    if done.returncode:
        sys.exit(f"training under {LIMIT >> 20} MB failed ({done.returncode}):\n{done.stderr[-3000:]}")
    if not grouped:
        peak = round(json.loads(done.stdout.splitlines()[-1])["peak_mb"])
    print(
        json.dumps(
            {
                "data_mb": size >> 20,
                "limit_mb": LIMIT >> 20,
                "limit": "control group, page cache included" if grouped else "RLIMIT_DATA, page cache not included",
                "peak_mb": peak,
                "images": IMAGES,
                "seconds": round(seconds, 1),
            }
        )
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        print(json.dumps(train(sys.argv[2])))
    else:
        main()
