"""How a stage starts."""

import subprocess
import sys
from pathlib import Path

import pytest

from regbench import runtime

PROGRAM = """
import re, sys
from pathlib import Path
from regbench import runtime

print("started", flush=True)
runtime.large_pages()
blocks = [bytearray(1 << 20) for _ in range(64)]
print(sys.argv[1:], sum(map(int, re.findall(r"AnonHugePages: +(\\d+)", Path("/proc/self/smaps").read_text()))) >> 10)
"""

HEAP = """
import re
from pathlib import Path
from regbench import runtime

def written():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) >> 10

runtime.large_pages()
runtime.start(heap=300 << 20)
before = written()
blocks = [bytearray(b"x") * (1 << 20) for _ in range(100)]
print(before, written())
"""

linux = pytest.mark.skipif(sys.platform != "linux", reason="of Linux and glibc")


def run(program, folder, *arguments):
    """What a program says that starts with no settings of glibc, by lines."""
    (folder / "program.py").write_text(program)
    source = str(Path(runtime.__file__).parents[1])
    command = ("env", "--unset=GLIBC_TUNABLES", f"PYTHONPATH={source}", sys.executable, "program.py", *arguments)
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


@linux
def test_memory_is_ready_before_it_is_needed(tmp_path):
    before, after = map(int, run(HEAP, tmp_path)[-1].split())
    assert before > 300
    assert after - before < 20


@linux
def test_large_pages(tmp_path):
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this machine has no large pages")
    *starts, result = run(PROGRAM, tmp_path, "two words", "-x")
    assert starts == ["started", "started"]
    arguments, megabytes = result.rsplit(" ", 1)
    assert arguments == "['two words', '-x']"
    assert int(megabytes) > 48
