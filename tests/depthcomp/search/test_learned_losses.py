"""Losses of choices inside plans, learnt from whole plans: against conditional Gaussians, and what they teach."""

import numpy as np
import pytest

from depthcomp.search.learned_losses import COMMON, NOISE, OF_EXIT, OF_KIND, OWN, LearnedLosses
from fx_passes import Drop, Fit, Plan

ONE, TWO, THREE = Drop("a", "b"), Drop("b", "c"), Drop("c", "d")
OTHER = Fit("a", "b", (3, 3))  # ends where ONE does
FAR = Fit("c", "d2", (3, 3))  # ends where none does
ALONE = {ONE: 0.2, OTHER: 0.1, TWO: 0.3, THREE: 0.4}


def test_without_plans_losses_are_those_of_choices_alone():
    assert LearnedLosses(ALONE, seed=0).posterior_mean({}) == pytest.approx(ALONE)


def test_plans_as_costly_as_their_sums_change_nothing():
    plans = {Plan((ONE, TWO)): 0.5, Plan((OTHER, THREE)): 0.5}
    assert LearnedLosses(ALONE, seed=0).posterior_mean(plans) == pytest.approx(ALONE)


def test_expected_losses_are_the_mean_of_the_conditional_gaussian():
    mean, _ = posterior()
    assert [*LearnedLosses(ALONE, seed=0).posterior_mean(PLANS).values()] == pytest.approx(mean)


PLANS = {Plan((ONE, TWO)): 0.9, Plan((TWO, THREE)): 0.6}


def posterior():
    """Return the mean and covariance of the losses in ALONE, given PLANS, from the textbook's formulas."""
    alone, lost = np.array([*ALONE.values()]), np.array([*PLANS.values()])
    one_exit, kinds = np.eye(4), np.array([choice.kind for choice in ALONE])
    one_exit[0, 1] = one_exit[1, 0] = 1
    one_kind = kinds[:, None] == kinds
    shared = COMMON**2 + OF_KIND**2 * one_kind + OF_EXIT**2 * one_exit
    prior = np.outer(alone, alone) * (shared + OWN**2 * np.eye(4))
    design = np.array([[1, 0, 1, 0], [0, 0, 1, 1]])
    gain = prior @ design.T @ np.linalg.inv(design @ prior @ design.T + np.diag((NOISE * lost) ** 2))
    return alone + gain @ (lost - design @ alone), prior - gain @ design @ prior


def test_a_costly_plan_blames_its_choices_most_then_those_of_their_kinds_and_exits():
    found = LearnedLosses(ALONE | {FAR: 0.1}, seed=0).posterior_mean({Plan((ONE, TWO)): 1.0})
    factors = {choice: found[choice] / loss for choice, loss in (ALONE | {FAR: 0.1}).items()}
    assert factors[ONE] > factors[THREE] > factors[FAR] > 1  # of the kind that was tried, and of another
    assert factors[OTHER] > factors[FAR]
    assert factors[TWO] > factors[ONE]  # it is the larger part of the sum


def test_a_choice_that_loses_nothing_alone_is_blamed_too():
    found = LearnedLosses({ONE: 0.0, TWO: 0.1}, seed=0).posterior_mean({Plan((ONE,)): 1.0})
    assert found[ONE] > 0


def test_no_loss_falls_below_a_share_of_the_loss_alone():
    found = LearnedLosses(ALONE, seed=0).posterior_mean({Plan((ONE, TWO, THREE)): 1e-6, Plan((TWO, THREE)): 1.0})
    assert all(found[choice] >= 0.1 * loss - 1e-12 for choice, loss in ALONE.items())


def test_samples_have_the_mean_and_covariance_of_the_conditional_gaussian():
    learned, (mean, covariance) = LearnedLosses(ALONE, seed=0), posterior()
    samples = np.array([[*learned.sample(PLANS).values()] for _ in range(20000)])
    assert samples.mean(0) == pytest.approx(mean, rel=0.02)
    assert np.cov(samples.T) == pytest.approx(covariance, rel=0.1, abs=2e-4)


@pytest.mark.parametrize("lost", [100.0, float("inf")])
def test_how_bad_a_useless_plan_is_says_little_about_choices_that_it_lacks(lost):
    others = {Plan((TWO,)): 0.3, Plan((TWO, THREE)): 0.7}
    learned = LearnedLosses(ALONE | {Drop("e", "f"): 0.001}, seed=0)
    before, found = learned.posterior_mean(others), learned.posterior_mean(others | {Plan((ONE,)): lost})
    assert found[ONE] > 2 * ALONE[ONE]
    assert found[THREE] == pytest.approx(before[THREE], rel=0.1)
    assert found[Drop("e", "f")] < 0.02


@pytest.mark.parametrize("lost", [0.0, -0.1, float("inf")])
def test_plans_that_all_lose_nothing_or_overflow_teach_nothing(lost):
    learned = LearnedLosses(ALONE | {Drop("e", "f"): -0.01}, seed=0)
    assert learned.posterior_mean({Plan((ONE,)): lost}) == pytest.approx(ALONE | {Drop("e", "f"): -0.01})


def test_equal_seeds_draw_equal_losses():
    one, two, other = (LearnedLosses(ALONE, seed=seed).sample({}) for seed in (3, 3, 4))
    assert one == two != other


def test_without_choices_there_is_nothing_to_learn():
    assert LearnedLosses({}, seed=0).posterior_mean({}) == {}
    assert LearnedLosses({}, seed=0).sample({}) == {}
