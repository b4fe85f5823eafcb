"""The sentences about the numbers."""

import fake_runs
import pytest

from regbench.report import runs, summary, verdicts


@pytest.fixture
def said(tmp_path, monkeypatch):
    """A function of a plan and options of `fake_runs.write` that returns the sentences."""
    monkeypatch.chdir(tmp_path)

    def say(plan, diverged=(), **options):
        fake_runs.write(plan, **options)
        for run in diverged:
            fake_runs.diverge(tmp_path / "runs" / run)
        found = runs.read(plan)
        rows = summary.rows(plan, found)
        return [*verdicts.sentences(rows, plan["seeds"], plan["report"].baseline, summary.images(found))]

    return say


def test_one_seed_is_about_two_models(said):
    sentences = said(fake_runs.report_plan(), test=lambda place, seed: (200, 240, 202)[place])
    assert sentences[0].startswith(
        "The model with l1 is better than the model with none on these test images: +10.0 points ["
    )
    assert sentences[0].endswith("], p < 0.001.")
    assert sentences[1].startswith("The data can't tell the model with l2 from the model with none: +0.5 points [")
    assert sentences[2] == "Validation picks l1: 55.0% there, 60.0% on test."
    assert "corrected for 2 comparisons (Holm)" in sentences[3]
    assert sentences[3].endswith("They say nothing about other seeds: add some to `seeds`.")
    assert len(sentences) == 4


def test_several_seeds_are_about_the_regularizers(said):
    test = [[200, 205, 198], [100, 110, 99], [201, 203, 200]]
    sentences = said(fake_runs.report_plan(seeds=[0, 1, 2]), test=lambda place, seed: test[place][seed])
    assert sentences[0].startswith("l1 is worse than none: −24.5 points [")
    assert sentences[1].startswith("The data can't tell l2 from none: +0.1 points [")
    assert sentences[3].startswith("n = 3 seeds, 400 test images.")
    assert sentences[4] == (
        "3 seeds are few. The t-test assumes that differences over seeds are normal. A sign test does not, and with 3 "
        "seeds its p is 0.25 at best; with 6 seeds it can be 0.031."
    )


def test_two_seeds_that_agree_can_tell_nothing(said):
    sentences = said(fake_runs.report_plan({"none": None, "l2": ("l2", 0.1)}, seeds=[0, 1]))
    assert sentences[0] == "The data can't tell l2 from none: +10.0 points, p = 0.500."
    assert "Each seed has the same difference for l2." in sentences[-1]


def test_six_seeds_are_not_few(said):
    plan = fake_runs.report_plan({"none": None, "l2": ("l2", 0.1)}, seeds=range(6))
    sentences = said(plan, test=lambda place, seed: 200 + 10 * place + seed % 3 * place)
    assert not any("few" in sentence for sentence in sentences)


def test_divergence_is_said_and_what_to_do(said):
    plan = fake_runs.report_plan(seeds=[0, 1])
    sentences = said(plan, diverged=["none-1", "l2-0"])
    assert sentences[0] == "none diverged with seed 1 in epoch 2: lower train.learning_rate."
    assert sentences[1] == "l2 diverged with seed 0 in epoch 2: lower train.learning_rate or its strength."
    assert sentences[2] == "none is the baseline and diverged, so nothing is compared with it."
    assert sentences[3].startswith("Validation picks l1")
    assert said(plan, diverged=[f"{name}-0" for name in plan["reg"]])[-1].startswith("none is the baseline")


def test_the_largest_class_where_classes_are_unequal(said):
    assert "a model that always names the largest class has 25.0% on test, 25.0% on validation." in " ".join(
        said(fake_runs.report_plan(), largest=100)
    )


@pytest.mark.parametrize(("fraction", "shown"), [(0.0312, "+3.1"), (-0.1, "−10.0"), (-0.0004, "+0.0"), (0, "+0.0")])
def test_points(fraction, shown):
    assert verdicts.points(fraction) == shown
