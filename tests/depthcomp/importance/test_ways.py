"""The lesser of two mean losses, and which choices profit from the second way."""

import math

import pytest

from depthcomp.importance.ways import least, profiting


@pytest.mark.parametrize(
    ("losses", "wanted"),
    [
        ([(1.0,), (3.0,)], 2.0),
        ([(1.0, 0.5), (3.0, 4.5)], 2.0),
        ([(1.0, 0.5), (3.0, 1.5)], 1.0),
        ([(math.nan, 0.5), (3.0, 1.5)], 1.0),
        ([(1.0, math.inf), (3.0, 1.5)], 2.0),
        ([(1.0, 0.5), (3.0,)], 1.0),
        ([(1.0, 2.0), (3.0,)], 2.0),
        ([(-1.0, -2.0), (3.0,)], 0.0),
        ([(math.inf, 0.5), (3.0,)], 0.5),
        ([(math.nan, 0.5), (3.0,)], 0.5),
        ([(1.0, math.nan), (3.0,)], 2.0),
    ],
)
def test_the_lesser_mean_counts(losses, wanted):
    assert least(losses) == wanted


def test_a_loss_that_is_nan_either_way():
    assert math.isnan(least([(math.nan, math.nan)]))


def test_choices_profit_whose_mean_is_less_with_refits():
    losses = {
        "one": [(1.0, 0.5), (1.0, 1.2)], "two": [(1.0, 1.0)], "three": [(1.0,)], "four": [(0.1, math.nan)],
        "five": [(1.0, 0.96)], "six": [(-1.0, -0.99)], "seven": [(-1.0, -1.2)], "eight": [(math.inf, 2.0)],
        "nine": [(math.nan, 2.0)], "ten": [(math.inf, math.nan)],
        "eleven": [(1.0, 0.9), (1.0,)], "twelve": [(1.0, 1.0), (1.0,)],
    }  # fmt: skip
    assert profiting(losses) == {"one", "seven", "eight", "nine", "eleven"}
