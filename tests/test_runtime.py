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


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux and glibc")
def test_large_pages(tmp_path):
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not setting.exists() or "[never]" in setting.read_text():
        pytest.skip("this machine has no large pages")
    (tmp_path / "program.py").write_text(PROGRAM)
    source = str(Path(runtime.__file__).parents[1])
    program = ("env", "--unset=GLIBC_TUNABLES", f"PYTHONPATH={source}", sys.executable, "program.py")
    done = subprocess.run([*program, "two words", "-x"], cwd=tmp_path, capture_output=True, text=True, check=True)
    *starts, result = done.stdout.splitlines()
    assert starts == ["started", "started"]
    arguments, megabytes = result.rsplit(" ", 1)
    assert arguments == "['two words', '-x']"
    assert int(megabytes) > 48
