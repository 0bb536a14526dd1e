"""The check of estimates, and the curve that corrects them."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthcomp.importance.estimate_check import check_estimates, correction, exit_factors
from fx_passes import Drop

ONE, TWO, OTHER = Drop("a", "x"), Drop("b", "x"), Drop("a", "y")
LOSSES = st.lists(st.tuples(st.floats(1e-6, 1e3), st.floats(1e-6, 1e3)), min_size=8, max_size=40)


def test_the_check_counts_ranks_and_ratios():
    check = check_estimates([1.0, 2.0, 4.0, math.nan], [2.0, 4.0, 8.0, 1.0])
    assert (check.choices, check.rank_correlation) == (3, 1.0)
    assert (check.low_ratio, check.median_ratio, check.high_ratio) == (0.5, 0.5, 0.5)


def test_constant_losses_have_no_rank_correlation():
    assert check_estimates([1.0, 1.0], [1.0, 2.0]).rank_correlation is None


def test_no_finite_pair_is_no_check():
    assert check_estimates([math.nan], [1.0]) is None


def test_estimates_that_grow_too_fast_are_corrected():
    estimates = np.geomspace(0.01, 10, 30)
    true = np.where(estimates < 0.3, estimates, 0.3 * (estimates / 0.3) ** 0.5)
    corrected = correction(estimates, true)
    assert corrected(0.05) == pytest.approx(0.05, rel=0.05)
    assert corrected(5.0) == pytest.approx(0.3 * (5 / 0.3) ** 0.5, rel=0.05)


def test_beyond_all_pairs_the_last_ratio_stays():
    corrected = correction([2.0**k for k in range(9)], [2.0**k / 2 for k in range(9)])
    assert corrected(1024.0) == pytest.approx(512.0)
    assert corrected(0.01) == pytest.approx(0.005)


def test_few_pairs_change_nothing():
    assert correction([1.0, 2.0], [10.0, 30.0])(1.5) == 1.5


@pytest.mark.parametrize("value", np.geomspace(1e-8, 1.0, 20))
def test_equal_estimates_are_one_point_of_the_curve(value):
    true = np.repeat(np.arange(1.0, 11.0), range(1, 11))  # blocks of all sizes, whose means differ by rounding
    corrected = correction([*np.full(len(true), value), 2.0], [*true, 20.0])
    assert corrected(value / 2) < corrected(value) < corrected(2.0) == pytest.approx(20.0)


@given(LOSSES, st.floats(1e-7, 1e4), st.floats(1e-7, 1e4))
def test_the_curve_never_changes_an_order(pairs, one, other):
    corrected = correction(*zip(*pairs, strict=True))
    low, high = sorted((one, other))
    assert corrected(low) <= corrected(high) * (1 + 1e-9)
    assert corrected(low) > 0


def test_choices_of_one_exit_are_corrected_alike():
    factors = exit_factors({ONE: 1.0, TWO: 1.0, OTHER: 1.0}, {ONE: 4.0, OTHER: 1.0})
    assert factors == {"x": pytest.approx(2.0), "y": 1.0}  # as if a second choice were right
    assert exit_factors({ONE: 1.0, TWO: 1.0}, {ONE: 8.0, TWO: 8.0}) == {"x": pytest.approx(4.0)}


def test_losses_that_are_not_finite_or_zero_correct_no_exit():
    corrected = {ONE: math.nan, TWO: 1.0, OTHER: 0.0}
    assert exit_factors(corrected, {ONE: 1.0, TWO: math.inf}) == {}
    assert exit_factors(corrected, {OTHER: 0.0}) == {"y": 1.0}
