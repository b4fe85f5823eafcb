"""However a file that Git tracks is damaged, there is a message and no traceback."""

import shutil
from pathlib import Path

import fake_runs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regbench import params
from regbench.errors import UserError
from regbench.report import results, runs, summary, table, write
from regbench.review import check, git, lockfile, parameters, pull_request

READ = ("dvc.lock", "params.yaml", "report.json", "metrics/summary.json")
TRACKED = (*READ, "report.md", "plots/curves.csv", "dvc.yaml")
COSTLY = settings().max_examples // 5
"""The number of examples of a test that calls Git."""


@st.composite
def damages(draw):
    """A function from the bytes of a file to damaged ones."""
    place, other = draw(st.floats(0, 1)), draw(st.floats(0, 1))
    kind = draw(st.sampled_from(["truncate", "flip", "line twice", "line gone", "markers", "word", "emptied", "swap"]))
    bit, word = draw(st.integers(0, 7)), draw(st.sampled_from(WORDS))

    def damage(data):
        at = int(place * (len(data) - 1))
        lines = data.splitlines(keepends=True)
        line = int(place * (len(lines) - 1))
        if kind == "truncate":
            return data[:at]
        if kind == "flip":
            return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
        if kind == "line twice":
            return b"".join([*lines[: line + 1], lines[line], *lines[line + 1 :]])
        if kind == "line gone":
            return b"".join([*lines[:line], *lines[line + 1 :]])
        if kind == "markers":
            end = max(line, int(other * (len(lines) - 1)))
            part = b"".join(lines[line:end])
            marked = b"<<<<<<< HEAD\n" + part + b"=======\n" + part + b">>>>>>> other\n"
            return b"".join([*lines[:line], marked, *lines[end:]])
        if kind == "word":
            key, colon, _ = lines[line].partition(b":")
            return b"".join([*lines[:line], key + colon + b" " + word + b"\n", *lines[line + 1 :]])
        if kind == "swap":
            second = int(other * (len(lines) - 1))
            lines[line], lines[second] = lines[second], lines[line]
            return b"".join(lines)
        return b""

    return damage


WORDS = (
    b"null,", b"null", b"-1,", b"1e999", b"NaN,", b'"text",', b"[]", b"{}", b"[[[[", b"'", b'"\\u0000"', b"2020-99-99",
    b"!!python/none", b"&a [*a]", b"*b", b"0x", b"9" * 400 + b",", b"\xff", b"\0", b"../../etc/passwd",
)  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """{name: bytes} of a report, a summary, params and a dvc.lock."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("texts"))
        plan = fake_runs.report_plan(seeds=[0, 1])
        fake_runs.write(plan)
        found = runs.read(plan)
        rows = summary.rows(plan, found)
        summary.write(rows, found)
        compiled = write.compile_report(plan, found, rows, [(Path("plots/accuracy.png"), "Accuracy")])
        root = Path(__file__).resolve().parents[2]
        return {
            "report.json": compiled.model_dump_json(indent=2).encode(),
            "metrics/summary.json": summary.SUMMARY.read_bytes(),
            "params.yaml": (root / "params.yaml").read_bytes(),
            "dvc.lock": LOCK.encode(),
        }


LOCK = """schema: '2.0'
stages:
  prepare:
    cmd: exec python stages/prepare.py
    deps:
    - path: plans/prepare.json
      hash: md5
      md5: 700db75b44518933e616e882245a5a23
      size: 5928
    outs:
    - path: prepared/test
      hash: md5
      md5: 3fdbf8e0a5b6226f8ecf0aaa7043d32b.dir
      size: 86241684
      nfiles: 7
"""


@settings(derandomize=True, suppress_health_check=list(HealthCheck))
@given(damage=damages(), name=st.sampled_from(READ))
def test_readers(texts, damage, name):
    data = damage(texts[name])
    readers = {
        "report.json": [
            lambda: write.markdown(results.parse(data, name)),
            lambda: table.terminal(results.parse(data, name)),
        ],
        "metrics/summary.json": [lambda: summary.parse(data, name)],
        "params.yaml": [lambda: parameters.flat(data), lambda: params.parse(data.decode(errors="replace"))],
        "dvc.lock": [lambda: lockfile.parse(data, name)],
    }
    for read in readers[name]:
        try:
            read()
        except UserError as error:
            assert name in str(error)


@pytest.fixture(scope="module")
def copied(original, tmp_path_factory):
    """A copy of the repository. Each example damages it and repairs it again."""
    return Path(shutil.copytree(original, tmp_path_factory.mktemp("copy") / "project", symlinks=True))


def said(call):
    """What a call returns, or the message of its `UserError`."""
    try:
        return call()
    except UserError as error:
        return str(error)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.dvc
@settings(max_examples=COSTLY, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damage=damages(), name=st.sampled_from(TRACKED))
def test_check_report_and_table(copied, damage, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied)
        whole = Path(name).read_bytes()
        damaged = damage(whole)
        Path(name).write_bytes(damaged)
        try:
            found = said(check.check)
            assert found or damaged == whole, f"{name} is damaged and nothing says so"
            said(lambda: pull_request.report("HEAD"))
            said(table.show)
        finally:
            Path(name).write_bytes(whole)


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.dvc
@settings(max_examples=COSTLY, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damage=damages(), name=st.sampled_from(READ))
def test_a_damaged_base_is_compared_as_far_as_it_goes(copied, damage, name):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copied)
        whole = Path(name).read_bytes()
        Path(name).write_bytes(damage(whole))
        try:
            git.output("commit", "--quiet", "--allow-empty", "-am", "damaged")
            git.output("tag", "--force", "damaged")
            git.output("reset", "--quiet", "--hard", "HEAD~1")
            git.output("commit", "--quiet", "--allow-empty", "-m", "whole")
            # Compare as on a branch that starts from the damaged commit.
            before, now = pull_request.committed(git.commit("damaged")), pull_request.workspace()
            changed = None if before.params is None else parameters.changes(before.params, now.params)
            assert {it.name for it in pull_request.compare(before, now, changed)} >= {*now.names}
        finally:
            Path(name).write_bytes(whole)
