"""The line under `reg` that a command names, and the lines that a search writes into params.yaml."""

import pytest
import yaml
from scratch import ROOT

from regbench import params
from regbench.errors import UserError
from regbench.search import edit, line

PARAMS = (ROOT / "params.yaml").read_text()
WITH_MORE = edit.with_sections(
    PARAMS,
    {
        "none": 0,
        "l2": 0.001,
        "elastic": {"l1": 1e-5, "l2": 1e-4},
        "head": {"l2": 1e-3, "scope": "head"},
        "mix": {"dropout": 0.1, "l2": 1e-3, "scope": "head"},
        "unscoped": {"l2": 1e-3, "scope": None},
    },
    [0],
)
SETTINGS = params.parse(WITH_MORE)
WEAK, STRONG = line.strengths(1e-5, 1e-3, 2), line.strengths(1e-4, 1e-2, 1)


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ((1e-6, 1e-2, 2), [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2]),
        ((0.05, 0.5, 2), [0.05, 0.1, 0.3, 0.5]),
        ((2e-5, 1e-3, 3), [2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3]),
        ((1e-4, 1e-2, 1), [1e-4, 1e-3, 1e-2]),
        ((0.9e-4, 1.1e-2, 1), [0.9e-4, 1e-3, 1.1e-2]),
        ((0.2, 0.21, 2), [0.2, 0.21]),
    ],
)
def test_strengths_are_round_numbers_between_the_ends(ends, expected):
    assert line.strengths(*ends) == tuple(expected)


@pytest.mark.parametrize("ends", [(0, 1), (1e-3, 1e-3), (1e-2, 1e-3), (1, 1001), (-1, 1), (float("nan"), 1)])
def test_ends_that_are_none(ends):
    with pytest.raises(UserError, match="both must be above 0 and at most 1000"):
        line.strengths(*ends, 2)


@pytest.mark.parametrize(
    ("strength", "text"),
    [(1e-4, "1e-4"), (0.001, "1e-3"), (0.05, "5e-2"), (0.1, "0.1"), (0.35, "0.35"), (2.0, "2"), (1000.0, "1000"),
     (1.25e-5, "1.25e-5"), (1 / 3, "0.3333333333333333")],
)  # fmt: skip
def test_a_number_is_read_back_the_same(strength, text):
    assert line.number(strength) == text
    assert yaml.load(text, Loader=params.Loader) == strength


@pytest.mark.parametrize(
    ("target", "over", "name", "text", "label"),
    [
        ("l2", (), "l2_1e_4", "l2: 1e-4", "1e-4"),
        ("reg.l2", (), "l2_1e_4", "l2: 1e-4", "1e-4"),
        ("proximal_l1", (), "proximal_l1_1e_4", "proximal_l1: 1e-4", "1e-4"),
        ("head", (), "head_1e_4", "head: {l2: 1e-4, scope: head}", "1e-4"),
        ("mix.l2", (), "mix_1e_4", "mix: {l2: 1e-4, dropout: 0.1, scope: head}", "1e-4"),
        ("unscoped", (), "unscoped_1e_4", "unscoped: {l2: 1e-4}", "1e-4"),
        ("elastic.l2", (), "elastic_1e_4", "elastic: {l2: 1e-4, l1: 1e-5}", "1e-4"),
        ("elastic.l2", ("elastic.l1",), "elastic_1e_4_1e_3", "elastic: {l2: 1e-4, l1: 1e-3}", "l2 1e-4, l1 1e-3"),
        ("elastic.l2", ("reg.elastic.l1",), "elastic_1e_4_1e_3", "elastic: {l2: 1e-4, l1: 1e-3}", "l2 1e-4, l1 1e-3"),
        ("l2", ("l1",), "l2_l1_1e_4_1e_3", "l2_l1: {l2: 1e-4, l1: 1e-3}", "l2 1e-4, l1 1e-3"),
        (
            "elastic.l2",
            ("elastic.l1", "dropout"),
            "elastic_dropout_1e_4_1e_3_3e_5",
            "elastic_dropout: {l2: 1e-4, l1: 1e-3, dropout: 3e-5}",
            "l2 1e-4, l1 1e-3, dropout 3e-5",
        ),
    ],
)
def test_what_a_command_names(target, over, name, text, label):
    found = line.parse(SETTINGS, target, over, [WEAK, STRONG, WEAK][: 1 + len(over)])
    point = (2, 1, 1)[: len(found.axes)]
    assert (found.name(point), found.text(point), found.label(point)) == (name, text, label)
    # The same regularizer under both names.
    changed = params.parse(edit.with_line(WITH_MORE, found.key, found.value(point)))
    searched = params.parse(edit.with_line(WITH_MORE, name, found.spelled_out(point)))
    assert {*changed.reg[found.key].terms} == {*searched.reg[name].terms}


@pytest.mark.parametrize(
    ("target", "over", "said"),
    [
        ("l3", (), "l3 is neither a key under reg: .* nor a kind of regularizer"),
        ("none", (), "none is no regularizer"),
        ("elastic", (), "elastic has 2 kinds; name one, elastic.l1 or elastic.l2, and the other with --over"),
        ("elastic.orthogonal", (), "elastic has no kind orthogonal; it has l1, l2"),
        ("other.l2", (), "other is not a key under reg"),
        ("l2", ("elastic.l1",), "elastic is another line than l2"),
        ("elastic.l2", ("elastic.l2",), "l2 is searched already"),
        ("l2", ("l1", "l1"), "l1 is searched already"),
        ("l2", ("l2",), "l2 is searched already"),
        ("mixup", ("cutmix",), "(mixup and cutmix|cutmix and mixup) can't go together"),
    ],
)
def test_what_is_no_line(target, over, said):
    with pytest.raises(UserError, match=said):
        line.parse(SETTINGS, target, over, [WEAK, STRONG, WEAK][: 1 + len(over)])


@pytest.mark.parametrize(
    ("target", "ends", "said"),
    [
        ("dropout", (0.1, 2), r"reg\.dropout: 1\.0 is not allowed; it should be a number from 0 to 0\.99"),
        ("early_stopping", (0.1, 5), r"reg\.early_stopping: 0\.1 is not allowed; it should be a whole number"),
        ("elastic.l2", (1, 2000), "--from 1 --to 2000 is not allowed"),
    ],
)
def test_a_strength_that_a_kind_does_not_have(target, ends, said):
    with pytest.raises(UserError, match=said):
        line.lines(SETTINGS, [target], (), [ends], 2)


def test_one_line_changes_and_comments_stay():
    before = PARAMS.replace("  l2: 0.001\n", "  l2: 0.001  # as in the article\n")
    changed = edit.with_line(before, "l2", 3e-5)
    expected = before.replace("l2: 0.001  # as", "l2: 3e-5  # as")
    assert changed == expected
    added = edit.with_line(before, "l2_l1", {"l2": 1e-4, "l1": 1e-6})
    assert added == before.replace("article\n# A seed", "article\n  l2_l1: {l2: 1e-4, l1: 1e-6}\n# A seed")
    assert params.parse(added).reg["l2_l1"].active["l1"].strength == 1e-6


@pytest.mark.parametrize(
    "layout",
    [
        "reg:\n    none: 0\n    l2:\n        # how strong\n        l2: 0.001\n        scope: head\n\n    l1: 0.5\n",
        "reg:\n  none: 0\n\n  # below\n  l2: {l2: 0.001}\n  l1: 0.5\n",
        "reg:\n  l2: 1\n  none: 0\n  l1: 0.5\n",
    ],
)
def test_other_layouts(layout):
    start, end = PARAMS.index("reg:\n"), PARAMS.index("# A seed sets")
    text = PARAMS[:start] + layout + PARAMS[end:]
    changed = edit.with_line(text, "l2", 3e-5)
    assert params.parse(changed).reg["l2"].terms[0].strength == 3e-5
    assert params.parse(changed).reg["l1"].terms[0].strength == 0.5
    assert changed.count("\n  l2: 3e-5\n") + changed.count("\n    l2: 3e-5\n") == 1
    assert changed[: changed.index("l2: 3e-5")] == text[: changed.index("l2: 3e-5")]


def test_a_layout_that_is_left_to_people():
    text = PARAMS.replace("reg:\n  none: 0\n  l1: 0.001\n  l2: 0.001\n", "reg: {none: 0, l1: 0.001, l2: 0.001}\n")
    assert params.parse(text)
    with pytest.raises(UserError, match="write by hand: l2: 3e-5"):
        edit.with_line(text, "l2", 3e-5)
    with pytest.raises(UserError, match="no line begins with reg:"):
        edit.with_line('"reg":\n  none: 0\n', "l2", 3e-5)


def test_sections_change_and_the_rest_stays():
    changed = edit.with_sections(PARAMS, {"none": 0, "l2_1e_4": {"l2": 1e-4}}, [0, 7])
    settings = params.parse(changed)
    assert [run.key for run in settings.runs] == ["none-0", "none-7", "l2_1e_4-0", "l2_1e_4-7"]
    gone = set(PARAMS.splitlines()) - set(changed.splitlines())
    assert gone == {"  l1: 0.001", "  l2: 0.001", "- 1", "- 2"}
    assert edit.with_sections(PARAMS.replace("seeds:\n- 0\n- 1\n- 2\n", "seeds: [0, 1, 2]\n"), {"none": 0}, [3])
