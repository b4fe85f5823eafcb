"""The tables that are filled from committed JSON."""

import json
import shutil

import pytest
from scratch import ROOT

from regbench.errors import UserError
from regbench.review import blocks


@pytest.fixture
def pages(tmp_path, monkeypatch):
    """A folder with the committed pages and the files that their tables come from."""
    for name in ("README.md", "report.json", "params.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    (tmp_path / "benchmarks").mkdir()
    for path in (ROOT / "benchmarks").glob("*.json"):
        shutil.copy(path, tmp_path / "benchmarks")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_committed_tables_are_current(pages):
    assert list(blocks.stale()) == []


def test_a_changed_number_is_found_and_filled_again(pages):
    readme = pages / "README.md"
    before = readme.read_text()
    row = next(line for line in before.splitlines() if line.startswith("| none | "))
    readme.write_text(before.replace(row, row.replace("5", "6", 1)))
    assert [line.partition(":")[0] for line in blocks.stale()] == ["README.md"]
    assert blocks.fill() == [readme.relative_to(pages)]
    assert readme.read_text() == before
    assert blocks.fill() == []


def test_a_changed_result_is_noted_with_machine_and_day(pages):
    report = pages / "report.json"
    report.write_text(report.read_text().replace('"dataset": "cifar10"', '"dataset": "cifar100"'))
    with pytest.raises(UserError, match="make docs"):
        list(blocks.stale())
    blocks.fill()
    assert blocks.processor() in (pages / "docs/results.json").read_text()
    assert list(blocks.stale()) == []


@pytest.mark.parametrize("change", [("  l1: 0.001\n", ""), ("  l1: 0.001\n", "  l1: 0.01\n")])
def test_tables_are_of_the_report_also_after_a_change_of_params(pages, change):
    params = pages / "params.yaml"
    text = params.read_text()
    assert change[0] in text
    params.write_text(text.replace(*change))
    assert list(blocks.stale()) == []
    assert blocks.fill() == [] and "| l1, 0.001 |" in (pages / "README.md").read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda report: report.update(dataset="./photos"),
        lambda report: report["rows"]["l2"].update(strengths=[0.5]),
        lambda report: report["rows"].update(l2={"diverged": [[0, 1]]}),
        lambda report: report["rows"].pop("l2"),
    ],
)
def test_only_what_the_article_did_stands_beside_it(pages, change):
    report = json.loads((pages / "report.json").read_text())
    change(report)
    (pages / "report.json").write_text(json.dumps(report))
    blocks.fill()
    text = (pages / "docs/article/README.md").read_text()
    assert "| l2 | 59.5% | – | 0.5044 | – |" in text


def test_text_outside_of_blocks_stays(pages):
    page = pages / "docs/speed.md"
    page.write_text(page.read_text() + "\nA heading\n=======\n\nA line of one's own.\n")
    assert list(blocks.stale()) == []


def test_an_unknown_block_is_named(pages):
    (pages / "docs/own.md").write_text("<!-- mine -->\n1\n<!-- /mine -->\n")
    with pytest.raises(UserError, match=r"own\.md has a block of an unknown name, mine; known: results"):
        blocks.fill()


def test_a_conflict_is_said_in_words(pages):
    page = pages / "docs/results.json"
    page.write_text(f"<<<<<<< HEAD\n{page.read_text()}=======\n>>>>>>> other\n")
    with pytest.raises(UserError, match="merge conflict in line 1"):
        list(blocks.stale())
    blocks.fill()
    assert list(blocks.stale()) == []
