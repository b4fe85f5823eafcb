"""A disk that is full or can't be written: one message in each stage, no half-written file; the next run continues."""

import shutil
import subprocess
import sys

import killed
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.dvc, pytest.mark.faults]

KIB = 1024
STATE = 400 * KIB
"""Bytes of the checkpoint of an epoch; model.keras is a little larger."""


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    """A tiny project on its own disk of 80 MiB."""
    disk = tmp_path_factory.mktemp("disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield killed.project(disk / "project", image_folder)
    subprocess.run(["umount", "--lazy", disk], check=True)


def stage(repository, name, check=True):
    arguments = () if name in ("plan", "prepare", "report") else ("l2-0",)
    return repository.run("python", f"stages/{name}.py", *arguments, check=check)


MADE = {
    "plan": "plans/report.json",
    "prepare": "prepared/test",
    "train": "runs/l2-0/model.keras",
    "evaluate": "runs/l2-0/evaluation",
    "report": "report.md",
}
"""{stage: one of its outputs}, in the order of the stages."""


def ready(repository, name):
    """Run the stages before `name` that have not run, and delete the output of `name`."""
    for earlier in MADE:
        path = repository.folder / MADE[earlier]
        if earlier == name:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        if not path.exists():
            stage(repository, earlier)


def fill(repository, left):
    """Fill the disk with one file, except for `left` bytes. Returns the file."""
    ballast = repository.folder.parent / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(repository.folder).free - left))
    return ballast


def made(repository):
    """{path: size} of the outputs that have their final name."""
    roots = [repository.folder / root for root in ("plans", "prepared", "runs", "metrics", "plots")]
    files = [path for root in roots for path in root.rglob("*")]
    named = [path for path in files if path.is_file() and "partial" not in str(path.relative_to(repository.folder))]
    return {str(path.relative_to(repository.folder)): path.stat().st_size for path in named}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prepare", [100 * KIB]),
        ("train", [STATE // 3, 2 * STATE + STATE // 3]),  # room for less than one checkpoint; for two, not three
        ("evaluate", [8 * KIB]),
        ("report", [200 * KIB]),
    ],
)
def test_full_disk(repository, name, sizes):
    ready(repository, name)
    before = made(repository)
    for left in sizes:
        ballast = fill(repository, left)
        output = stage(repository, name, check=False)
        ballast.unlink()
        assert repository.returncode == 1
        assert output.count("error: no space is left for ") == 1
        assert output.rstrip().endswith("Free some and run again; it continues from here")
        assert "Traceback" not in output
    half = made(repository)
    stage(repository, name)
    after = made(repository)
    assert after.keys() > before.keys()
    # Every file that already had its final name was complete.
    assert {path: after[path] for path in half} == half


@pytest.mark.parametrize("name", ["plan", "prepare", "train", "evaluate", "report"])
def test_read_only_disk(repository, name):
    ready(repository, name)
    disk = repository.folder.parent
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        output = stage(repository, name, check=False)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert repository.returncode == 1
    assert "error: " in output and "can't be written: it is on a read-only file system" in output
    assert "Traceback" not in output


def test_dvc_on_a_full_disk(repository):
    """DVC copies the outputs of a stage into its cache and records them in dvc.lock. Neither is left half-written."""
    ballast = fill(repository, 450 * KIB)
    repository.dvc("repro", check=False)
    assert repository.returncode != 0
    ballast.unlink()
    repository.regbench("repro", "--jobs", "1")
    assert "up to date" in repository.dvc("status")
    folder = repository.folder
    kept = [path for path in (folder / ".dvc/cache/files/md5").rglob("*") if path.is_file() and path.suffix != ".tmp"]
    md5s = subprocess.run(["md5sum", *kept], capture_output=True, text=True, check=True).stdout.splitlines()
    for path, line in zip(kept, md5s, strict=True):
        assert line.split()[0] == path.parent.name + path.name.removesuffix(".dir")


def test_a_limit_on_the_size_of_files(image_folder, tmp_path):
    repository = killed.project(tmp_path / "project", image_folder)
    repository.run("python", "stages/plan.py")
    prepare = (sys.executable, "stages/prepare.py")
    output = repository.run("bash", "-c", 'ulimit -f 64; "$@"', "bash", *prepare, check=False)
    assert repository.returncode == 1
    assert "error: no space is left for " in output and "Traceback" not in output
    assert not list((repository.folder / "prepared").glob("*"))
    repository.run(*prepare)
