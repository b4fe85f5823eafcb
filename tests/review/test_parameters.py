"""Two versions of params.yaml → which keys changed."""

import pytest

from regbench.errors import UserError
from regbench.review import parameters


def test_changes_stand_in_the_order_of_the_file():
    before = parameters.flat(b"data:\n  size: 32\n  seed: 0\nreg:\n  none: 0\n  l1: 0.1\n  l2: 0.001\nseeds: [0]\n")
    now = parameters.flat(
        b"reg:\n  none: 0\n  elastic: {l1: 1e-5, l2: 1}\n  l2: 1e-3\nseeds: [0, 1]\ndata: {size: 64}\n"
    )
    assert [*parameters.changes(before, now).items()] == [
        ("reg.l1", (0.1, None)),
        ("reg.elastic.l1", (None, 1e-5)),
        ("reg.elastic.l2", (None, 1)),
        ("seeds", ([0], [0, 1])),
        ("data.size", (32, 64)),
        ("data.seed", (0, None)),
    ]


@pytest.mark.parametrize(
    ("before", "now", "changed"),
    [
        (b"a: 1", b"a: 1", False),
        (b"a: 1e-05", b"a: 0.00001", False),
        (b"a: true", b"a: 1", True),
        (b"a:", b"b:", True),
        (b"a: {}", b"a: {b: 1}", True),
        (b"", b"", False),
    ],
)
def test_what_counts_as_a_change(before, now, changed):
    assert bool(parameters.changes(parameters.flat(before), parameters.flat(now))) == changed


@pytest.mark.parametrize("data", [b"a: [", b"a: 1\na: 2", b"\xff", b"\0", b"? [a]\n: 1", b"a: 2020-99-99"])
def test_what_is_no_params_file(data):
    with pytest.raises(UserError, match=r"params.yaml is damaged .*: resolve params.yaml"):
        parameters.flat(data)
