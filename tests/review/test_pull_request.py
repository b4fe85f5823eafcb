"""`regbench pr-report` in a repository: what changed since another commit."""

import re

import pytest
import scratch

from regbench.errors import UserError
from regbench.review import pull_request

pytestmark = [pytest.mark.slow, pytest.mark.dvc]


def section(text, title):
    return text.split(f"### {title}\n")[1].split("###")[0].strip()


def verdict(text):
    """The line at the top that sums up the report."""
    return text.split("\n")[2].strip("*")


def test_nothing_changed(repository):
    text = pull_request.report("main")
    assert verdict(text) == "No parameter and no result changed."
    assert section(text, "Parameters") == section(text, "Runs") == "None."
    assert section(text, "Test accuracy").count("the same") == 2
    assert "Not current" not in text and "Figures" not in text


def test_base_that_is_not_there(repository):
    with pytest.raises(UserError, match="there is no commit 'origin/nowhere' here; run `git fetch origin`"):
        pull_request.report("origin/nowhere")


def test_params_changed_but_not_run(repository):
    repository.replace("params.yaml", "l2: 0.001", "l2: 0.5")
    text = pull_request.report("main")
    assert verdict(text) == "The results are not current. No result changed."
    assert "> **Not current**" in text and "> - train@l2-0: its plan has changed" in text
    assert "| reg.l2 | `0.001` | `0.5` |" in text


def test_regularizers_change_come_and_go(repository, tmp_path):
    repository.replace("params.yaml", "l2: 0.001", "l1: 0.01\n  l2: 0.5")
    repository.make("l2: 0.5, and l1", test=lambda place, seed: (200, 320, 150)[place])
    text = pull_request.report("main")
    new, changed, same = verdict(text).split(". ")[:3]
    assert re.fullmatch(r"With this seed l2 is worse than before \(−22\.5 points \[.*\]\)", changed)
    assert re.fullmatch(r"l1: new, better than none \(\+30\.0 points \[.*\]\)", new)
    assert same == "none: the same"
    assert section(text, "Parameters").splitlines()[2:] == [
        "| reg.l1 | – | `0.01` |",
        "| reg.l2 | `0.001` | `0.5` |",
    ]
    assert section(text, "Runs") == "- new: l1-0\n- changed: l2-0"
    assert "| l2 | validation accuracy | 0.55 | 0.325 |" in section(text, "Other metrics")
    assert "![plots/reg_loss.png](plots/reg_loss.png)" in section(text, "Figures that changed")
    assert section(text, "Test accuracy").splitlines()[2].startswith("| none | 50.0 [45.1, 54.9], n = 1 | 50.0")
    assert "Validation picks l1, before l2." in text

    repository.replace("params.yaml", "  l2: 0.5\n", "")
    repository.make("without l2", test=lambda place, seed: (200, 320)[place])
    text = pull_request.report("HEAD~1")
    assert verdict(text) == "l2: gone. none, l1: the same."
    assert section(text, "Runs") == "- gone: l2-0"
    clone = tmp_path / "clone"
    repository.run("git", "clone", "-q", str(repository.folder), str(clone))
    output = scratch.Repository(clone).regbench("pr-report", "origin/main", "--images", "https://a.org/raw/")
    assert section(output, "Runs") == "- new: l1-0\n- gone: l2-0"
    assert "![plots/reg_loss.png](https://a.org/raw/plots/reg_loss.png)" in output


def test_any_two_revisions(repository):
    """Here a branch, an experiment that DVC has saved, the workspace, and HEAD."""
    repository.replace("params.yaml", "l2: 0.001", "l1: 0.01\n  l2: 0.5")
    repository.make(test=lambda place, seed: (200, 320, 150)[place])
    repository.dvc("exp", "save", "--name", "randy-hunk")
    text = pull_request.between("main", "randy-hunk")
    assert re.match(r"## regbench: main \([0-9a-f]{7}\) → randy-hunk \([0-9a-f]{7}\)\n", text)
    assert "l1: new, better than none (+30.0 points [" in verdict(text)
    assert section(text, "Parameters").splitlines()[2:] == [
        "| reg.l1 | – | `0.01` |",
        "| reg.l2 | `0.001` | `0.5` |",
    ]
    assert "Not current" not in text and "plots/accuracy.png" in section(text, "Figures that changed")
    back = pull_request.between("randy-hunk", "main")
    assert "l1: gone" in verdict(back) and "With this seed l2 is better than before" in verdict(back)
    # Without a second revision, it is the workspace, which has the saved files, not committed.
    here = pull_request.between("randy-hunk")
    assert verdict(here) == "The results are not current. No parameter and no result changed."
    assert "not committed: params.yaml" in here
    output = repository.regbench("compare", "main", "nowhere", check=False)
    assert "error: there is no commit and no experiment nowhere here" in output
    repository.run("git", "reset", "-q", "--hard")
    (repository.folder / "report.json").unlink()
    repository.commit("no report")
    with pytest.raises(UserError, match=r"there is no report.json of [0-9a-f]{7}"):
        pull_request.between("main", "HEAD")


def test_other_images(repository):
    repository.make("other images", largest=100, test=lambda place, seed: 300)
    text = pull_request.report("main")
    assert section(text, "Test accuracy").count("| other data |") == 2
    assert section(text, "Parameters") == "None."


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no report.json of "),
        ("{", "report.json of "),
        ("<<<<<<< HEAD\n{}", "has a merge conflict in line 1"),
    ],
)
def test_base_without_a_report_that_can_be_read(repository, text, said):
    before = repository.read("report.json")
    if text is None:
        (repository.folder / "report.json").unlink()
    else:
        repository.write("report.json", text)
    repository.commit("broken")
    repository.write("report.json", before)
    repository.commit("mended")
    shown = pull_request.report("HEAD~1")
    assert said in shown and "Only accuracies of metrics/summary.json are compared" in shown
    assert section(shown, "Runs") == section(shown, "Other metrics") == "Not known."
    assert "| l2 | 60.0 | 60.0 [55.1, 64.7], n = 1 | +0.0 | not tested |" in shown


def test_base_of_which_nothing_can_be_read(repository):
    files = ("report.json", "metrics/summary.json", "dvc.lock", "params.yaml")
    kept = {path: repository.read(path) for path in files}
    for path in files:
        repository.write(path, "}{")
    repository.commit("broken")
    for path, text in kept.items():
        repository.write(path, text)
    repository.commit("mended")
    shown = pull_request.report("HEAD~1")
    assert section(shown, "Parameters") == "Not known."
    assert section(shown, "Test accuracy").count("new") == 2
    assert all(re.search(rf"^{path} of [0-9a-f]{{7}} is damaged", shown, re.MULTILINE) for path in files)


def test_an_earlier_version_of_the_summary(repository):
    summary_now, report_now = repository.read("metrics/summary.json"), repository.read("report.json")
    old = {
        "none": {"test_accuracy": 0.4, "seeds": 1},
        "l2": {"diverged": 1},
        "l1": {"test_accuracy": 0.3},
    }
    repository.write("metrics/summary.json", str(old).replace("'", '"'))
    (repository.folder / "report.json").unlink()
    repository.commit("version 0.1")
    repository.write("metrics/summary.json", summary_now)
    repository.write("report.json", report_now)
    repository.commit("version 0.2")
    shown = pull_request.report("HEAD~1")
    assert "| none | 40.0 | 50.0 [45.1, 54.9], n = 1 | +10.0 | not tested |" in shown
    assert "| l2 | diverged | 60.0 [55.1, 64.7], n = 1 |  | diverged before |" in shown
    assert "| l1 | 30.0 | – |  | gone |" in shown
