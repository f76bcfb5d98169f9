"""Successive halving, with one objective and with two."""

from __future__ import annotations

import pytest

from mnft.search.rungs import find_front, goes_on


@pytest.mark.parametrize(
    ("own", "others", "expected"),
    [
        (0.5, [], True),
        (0.5, [0.6], False),
        (0.6, [0.5], True),
        (0.5, [0.6, 0.4], False),
        (0.5, [0.6, 0.4, 0.3, 0.2, 0.1], True),  # the second of six
        (0.4, [0.6, 0.5, 0.3, 0.2, 0.1], False),  # the third of six
        (0.5, [0.5, 0.5], True),  # equal ones are not told apart
    ],
)
def test_the_best_third_goes_on(own, others, expected):
    assert goes_on([own], [[other] for other in others]) is expected


def test_with_two_objectives_what_no_other_dominates_goes_on():
    others = [[0.9, -10.0], [0.8, -5.0], [0.7, -1.0]]
    assert goes_on([0.75, -2.0], others)  # between two of the front
    assert goes_on([0.6, -0.5], others)  # the cheapest
    assert not goes_on([0.75, -6.0], others)  # dominated by the second
    assert find_front([*others, [0.75, -6.0]]) == [0, 1, 2]


def test_the_order_of_the_others_does_not_matter():
    others = [[0.1 * n, -float(n % 3)] for n in range(9)]
    for own in ([0.5, -1.0], [0.75, -2.0], [0.2, 0.0]):
        assert goes_on(own, others) is goes_on(own, others[::-1])
