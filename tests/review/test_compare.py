"""The comparison of a regularizer in two versions of the results."""

import fake_runs
import pytest

from regbench.report import runs, summary, write
from regbench.review import pull_request
from regbench.review.pull_request import Version, compare


@pytest.fixture
def version(tmp_path, monkeypatch):
    """A function of options of `fake_runs` that returns a `Version`."""
    monkeypatch.chdir(tmp_path)

    def make(test=fake_runs.right, diverged=(), images="md5", **plan):
        plan = fake_runs.report_plan(**plan)
        fake_runs.write(plan, test=test)
        for run in diverged:
            fake_runs.diverge(tmp_path / "runs" / run)
        found = runs.read(plan)
        report = write.compile_report(plan, found, summary.rows(plan, found), [])
        return Version({}, report, {}, images)

    return make


def words(before, now, changed=()):
    return {it.name: it.word for it in compare(before, now, dict.fromkeys(changed))}


def test_seeds_are_paired(version):
    """From seed to seed accuracies vary by 10 points, changes by at most one."""
    before = version(seeds=[0, 1, 2], test=lambda place, seed: 200 + 40 * seed)
    now = version(seeds=[0, 1, 2], test=lambda place, seed: 200 + 40 * seed + (0, 10 + seed, -3 + 4 * seed)[place])
    assert words(before, now) == {"none": "the same", "l1": "better", "l2": "can't tell"}
    estimate = next(it.estimate for it in compare(before, now, {}) if it.name == "l1")
    assert estimate.value == pytest.approx(11 / 400) and estimate.low > 0
    assert words(now, before)["l1"] == "worse"


def test_common_seeds_are_compared_whatever_their_order(version):
    before = version(seeds=[0, 1, 2], test=lambda place, seed: 200 + 40 * seed)
    now = version(seeds=[3, 2, 1], test=lambda place, seed: 200 + 40 * seed + 10 * place + (seed == 2))
    estimate = {it.name: it for it in compare(before, now, {})}["l2"]
    assert (estimate.estimate.value, estimate.seeds) == (pytest.approx(20.5 / 400), 2)
    row = next(row for row in pull_request._accuracies(compare(before, now, {}), before, now) if "| l2 " in row)
    assert "+5.1 [" in row and row.endswith("], n = 2 | better |")


@pytest.mark.parametrize(
    ("before", "now", "said", "unsaid"),
    [([0, 1], [0, 1], "t-test", "n = 1"), ([0], [0], "n = 1", "t-test"), ([0], [0, 1], "n = 1", "t-test")],
)
def test_the_test_that_was_made_is_named(version, before, now, said, unsaid):
    first = version(seeds=before, test=lambda place, seed: 200 + seed)
    second = version(seeds=now, test=lambda place, seed: 210 + 2 * seed)
    words = pull_request._accuracies(compare(first, second, {}), first, second)[-1]
    assert said in words and unsaid not in words


def test_two_seeds_that_agree_can_tell_nothing(version):
    before = version(seeds=[0, 1], test=lambda place, seed: 200)
    now = version(seeds=[0, 1], test=lambda place, seed: 240)
    assert {*words(before, now).values()} == {"can't tell"}


def test_one_seed_is_compared_by_two_proportions(version):
    before = version(test=lambda place, seed: 200)
    now = version(test=lambda place, seed: (205, 260, 140)[place])
    assert words(before, now) == {"none": "can't tell", "l1": "better", "l2": "worse"}


@pytest.mark.parametrize(
    ("before", "now", "changed", "word"),
    [
        ({}, {"images": "other"}, (), "other data"),
        ({"images": None}, {}, ["data.seed"], "other data"),
        ({"images": None}, {}, ["train.epochs"], "can't tell"),
        ({}, {"seeds": [1, 2]}, (), "other seeds"),
        ({}, {"seeds": [1, 0]}, (), "can't tell"),
        ({}, {"seeds": [0, 1], "test": fake_runs.right}, (), "the same with the seeds in common"),
        ({}, {"diverged": ["l2-0"]}, (), "diverged"),
        ({"diverged": ["l2-0"]}, {}, (), "diverged before"),
        ({"reg": {"none": None}}, {}, (), "new, better than none"),
        ({"reg": {"none": None}}, {"baseline": None}, (), "new"),
        ({"reg": {"none": None}}, {"diverged": ["none-0"]}, (), "new"),
        ({"reg": {"none": None}}, {"diverged": ["l2-0"]}, (), "new, diverged"),
        ({}, {"reg": {"none": None}}, (), "gone"),
    ],
)
def test_what_is_not_compared_is_said(version, before, now, changed, word):
    now = {"test": lambda place, seed: fake_runs.right(place, seed) + 1} | now
    assert words(version(**before), version(**now), changed)["l2"] == word


def test_diverged_in_the_same_way_is_the_same(version):
    assert words(version(diverged=["l2-0"]), version(diverged=["l2-0"]))["l2"] == "the same"


def test_a_name_in_another_name(version):
    """Runs of `l2_a` are not those of `l2`."""
    reg = {"l2": ("l2", 0.1), "l2_a": ("l2", 0.2)}
    before = version(reg=reg, baseline=None)
    now = version(reg=reg, baseline=None, test=lambda place, seed: 200 + 77 * place)
    assert words(before, now) == {"l2": "the same", "l2_a": "better"}


def test_the_verdict_counts_where_there_are_many(version):
    reg = {f"l2_{place}": ("l2", 0.1 + place) for place in range(6)}
    before = version(reg=reg, baseline="l2_0", test=lambda place, seed: 200)
    now = version(reg=reg, baseline="l2_0", test=lambda place, seed: 200 + 40 * (place % 3 - 1) + place)
    changes = compare(before, now, {})
    line = pull_request._verdict({"train.epochs": (1, 2)}, changes, before, now, [])
    assert line == "**2 worse, 2 can't tell, 2 better. Validation picks l2_5, before l2_0.**"


def test_text_from_others_stays_in_its_cell():
    changed = {"data.dataset": ("a|b", "`x`\n| y |"), "seeds": ([0], None), "train.flip": (True, 1)}
    rows = pull_request._parameters(changed)
    assert rows[2:] == [
        "| data.dataset | `a\\|b` | `'x' \\| y \\|` |",
        "| seeds | `[0]` | – |",
        "| train.flip | `true` | `1` |",
    ]
