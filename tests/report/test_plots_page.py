"""The page of `dvc plots show` and `dvc plots diff`: it draws without a network."""

import configparser
import hashlib
import importlib.util
import re
import shutil

import browser
import pytest
import scratch
from scratch import ROOT

PAGE = ROOT / ".dvc/plots_page.html"
COLOURS = ((1, 115, 178), (222, 143, 5), (2, 158, 115))
"""The colours of the first three regularizers."""


def test_the_page_is_what_its_script_makes():
    spec = importlib.util.spec_from_file_location("plots_page", ROOT / "docs/plots_page.py")
    made_by = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made_by)
    text = PAGE.read_text(encoding="utf-8")
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    found = [hashlib.sha256(script.encode()).hexdigest() for script in scripts]
    assert found == [sha256 for _, sha256 in made_by.PACKAGES.values()], "run `python docs/plots_page.py`"
    around = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)=|@import|url\(", around)
    assert around.count("{plot_divs}") == 1 and "{scripts}" not in around
    config = configparser.ConfigParser()
    config.read(ROOT / ".dvc/config")
    assert config["plots"]["html_template"] == PAGE.name


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The project with its committed plots, and other curves in the workspace."""
    made = scratch.copy_project(tmp_path_factory.mktemp("plots") / "a path with spaces", scratch.tiny_params("cifar10"))
    shutil.copytree(ROOT / "plots", made.folder / "plots")
    made.commit("results")
    made.write("plots/curves.csv", re.sub(r"^l2,", "l2_new,", made.read("plots/curves.csv"), flags=re.MULTILINE))
    return made


@browser.needed
@pytest.mark.slow
@pytest.mark.dvc
@pytest.mark.parametrize("command", ["show", "diff"])
def test_it_draws_without_a_network(repository, tmp_path, command):
    repository.dvc("plots", command, "-o", str(tmp_path / "page"))
    url = (tmp_path / "page/index.html").as_uri()
    assert "cdn" not in (tmp_path / "page/index.html").read_text(encoding="utf-8")
    page = browser.chromium(url, tmp_path / "own", "--dump-dom")
    assert page.count("<canvas") == 5 and page.count("<img") >= 8
    browser.chromium(url, tmp_path / "own", f"--screenshot={tmp_path / 'page.png'}")
    drawn = browser.colours(tmp_path / "page.png")
    assert [colour for colour in COLOURS if drawn.get(colour, 0) < 1000] == []
