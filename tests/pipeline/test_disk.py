"""A disk that is full or can't be written: one message in each stage, nothing half-written, and then it continues."""

import shutil
import subprocess
import sys

import killed
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.dvc, pytest.mark.faults]

KIB = 1024
STATE = 400 * KIB
"""What the checkpoint of an epoch takes; model.keras takes a little more."""


@pytest.fixture(scope="module")
def repository(image_folder, tmp_path_factory):
    """A tiny project on a disk of its own, of 80 MiB."""
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
"""What each stage makes, in order."""


def ready(repository, name):
    """Run the stages before `name` that have not run, and take away what `name` makes."""
    for earlier in MADE:
        path = repository.folder / MADE[earlier]
        if earlier == name:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return
        if not path.exists():
            stage(repository, earlier)


def fill(repository, left):
    """Let a file take all of the disk but `left` bytes; it is returned."""
    ballast = repository.folder.parent / "ballast"
    ballast.unlink(missing_ok=True)
    ballast.write_bytes(bytes(shutil.disk_usage(repository.folder).free - left))
    return ballast


def made(repository):
    """{path: size} of what a stage gave its final name."""
    roots = [repository.folder / root for root in ("plans", "prepared", "runs", "metrics", "plots")]
    files = [path for root in roots for path in root.rglob("*")]
    named = [path for path in files if path.is_file() and "partial" not in str(path.relative_to(repository.folder))]
    return {str(path.relative_to(repository.folder)): path.stat().st_size for path in named}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("prepare", [100 * KIB]),
        ("train", [STATE // 3, 2 * STATE + STATE // 3]),  # less than one checkpoint; two of them, but not three
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
    # What had its name already was whole.
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
    """DVC copies what a stage wrote into its cache, and notes it in dvc.lock; neither is left half-written."""
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
