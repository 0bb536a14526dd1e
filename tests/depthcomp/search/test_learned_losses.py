"""Losses of choices beside others, learnt from whole plans: against conditional Gaussians, and what they teach."""

import numpy as np
import pytest

from depthcomp.search.learned_losses import LearnedLosses
from fx_passes import Drop, Fit, Plan

ONE, TWO, THREE = Drop("a", "b"), Drop("b", "c"), Drop("c", "d")
OTHER = Fit("a", "b", (3, 3))  # ends where ONE does
ALONE = {ONE: 0.2, OTHER: 0.1, TWO: 0.3, THREE: 0.4}


def test_without_plans_losses_are_those_of_choices_alone():
    assert LearnedLosses(ALONE, seed=0).expected({}) == pytest.approx(ALONE)


def test_plans_as_costly_as_their_sums_change_nothing():
    plans = {Plan((ONE, TWO)): 0.5, Plan((OTHER, THREE)): 0.5}
    assert LearnedLosses(ALONE, seed=0).expected(plans) == pytest.approx(ALONE)


def test_expected_losses_are_the_mean_of_the_conditional_gaussian():
    plans = {Plan((ONE, TWO)): 0.9, Plan((TWO, THREE)): 0.6}
    alone = np.array([*ALONE.values()])
    kernel = np.outer(alone, alone) * (0.25 + 0.09 * np.eye(4))
    kernel[0, 1] = kernel[1, 0] = alone[0] * alone[1] * (0.25 + 0.09)  # one exit
    kernel += np.diag(0.09 * alone**2)
    holds = np.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    noise = np.diag((0.1 * np.array([0.9, 0.6])) ** 2)
    wanted = alone + kernel @ holds.T @ np.linalg.inv(holds @ kernel @ holds.T + noise) @ (
        np.array([0.9, 0.6]) - holds @ alone
    )
    assert [*LearnedLosses(ALONE, seed=0).expected(plans).values()] == pytest.approx(wanted)


def test_a_costly_plan_blames_its_choices_most_then_those_of_their_exits():
    found = LearnedLosses(ALONE, seed=0).expected({Plan((ONE, TWO)): 1.0})
    factors = {choice: found[choice] / loss for choice, loss in ALONE.items()}
    assert factors[ONE] > factors[OTHER] > factors[THREE] > 1
    assert factors[TWO] > factors[ONE]  # it is the larger part of the sum


def test_a_choice_that_loses_nothing_alone_is_blamed_too():
    found = LearnedLosses({ONE: 0.0, TWO: 0.1}, seed=0).expected({Plan((ONE,)): 1.0})
    assert found[ONE] > 0


def test_no_loss_falls_below_a_share_of_the_loss_alone():
    found = LearnedLosses(ALONE, seed=0).expected({Plan((ONE, TWO, THREE)): 1e-6, Plan((TWO, THREE)): 1.0})
    assert all(found[choice] >= 0.1 * loss - 1e-12 for choice, loss in ALONE.items())


def test_draws_have_the_mean_and_spread_of_what_is_known():
    plans = {Plan((ONE, TWO)): 0.6}
    learned = LearnedLosses(ALONE, seed=0)
    draws = [learned.drawn(plans) for _ in range(4000)]
    wanted = learned.expected(plans)
    for choice, loss in wanted.items():
        assert np.mean([each[choice] for each in draws]) == pytest.approx(loss, rel=0.05)
    sums = [each[ONE] + each[TWO] for each in draws]
    assert np.std(sums) == pytest.approx(0.1 * 0.6, rel=0.1)  # what is known of a plan is left uncertain by noise alone
    assert np.std([each[THREE] for each in draws]) > 0.1 * ALONE[THREE]


def test_equal_seeds_draw_equal_losses():
    one, two, other = (LearnedLosses(ALONE, seed=seed).drawn({}) for seed in (3, 3, 4))
    assert one == two != other


def test_without_choices_there_is_nothing_to_learn():
    assert LearnedLosses({}, seed=0).expected({}) == {}
    assert LearnedLosses({}, seed=0).drawn({}) == {}
